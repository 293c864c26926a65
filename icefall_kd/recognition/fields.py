"""Decode fields of kind ctc: a model whose CTC head returns stored distributions."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from icefall_kd.core.frames import average_probs


class MeanDistribution(nn.Module):
    """CTC head that returns the mean of the distributions of several fields.

    Attributes:
      weights: (F,) float32, weights of the fields in the mean.
    """

    def __init__(self, dims: Sequence[int], vocab_size: int) -> None:
        super().__init__()
        self.dims, self.vocab_size = list(dims), vocab_size
        # A parameter, because searches read the device of a head's parameters.
        self.weights = nn.Parameter(
            torch.full((len(dims),), 1.0 / len(dims)), requires_grad=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities (N, T, V) of frames (N, T, sum of dims)."""
        frames = x.split(self.dims, dim=-1)
        mean = average_probs(frames, self.weights.tolist(), self.vocab_size)
        return mean.log().log_softmax(dim=-1)


class StoredDistributions(nn.Module):
    """A model over stored distributions, with the parts of ``AsrModel`` for CTC search.

    Attributes:
      fields: fields of kind ``ctc`` that a batch must contain.
    """

    min_frames = 1
    padding_value = 0.0

    def __init__(
        self, fields: Sequence[str], dims: Sequence[int], vocab_size: int
    ) -> None:
        super().__init__()
        self.fields = tuple(fields)
        # the distributions are already computed, so there are no chunks to set
        self.encoder = SimpleNamespace(causal=False, set_chunk=lambda *_: None)
        self.ctc_output = MeanDistribution(dims, vocab_size)

    def get_inputs(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the concatenated frames (N, T, sum of dims) and their number (N,).

        Fields of an utterance are truncated to the shortest of them.

        Raises:
          ValueError: if the frame shifts of the fields differ.
        """
        fields = [batch["fields"][name] for name in self.fields]
        shifts = {field["frame_shift"] for field in fields}
        if len(shifts) > 1:
            raise ValueError(
                f"--fields {list(self.fields)}: frame shifts {sorted(shifts)} s; "
                "choose fields with equal frame shifts"
            )
        lens = torch.stack([field["lens"] for field in fields]).amin(dim=0)
        count = int(lens.max())
        return torch.cat([field["x"][:, :count] for field in fields], dim=2), lens

    def forward_encoder(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the arguments, because the fields are already encoded."""
        return x, x_lens
