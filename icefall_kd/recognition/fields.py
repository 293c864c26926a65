"""Stored CTC distributions as a recogniser: what teachers say, without the teachers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from icefall_kd.core.frames import average_probs


class MeanOfFields(nn.Module):
    """The mean of several frames of kind ``ctc``, in the place of a CTC head.

    Attributes:
      shares: of the fields in the mean, (F,) float32.
    """

    def __init__(self, dims: Sequence[int], vocab_size: int) -> None:
        super().__init__()
        self.dims, self.vocab_size = list(dims), vocab_size
        # A parameter: the searches ask a head's parameters for their device.
        self.shares = nn.Parameter(
            torch.full((len(dims),), 1.0 / len(dims)), requires_grad=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities (N, T, V) of frames (N, T, sum of dims)."""
        frames = x.split(self.dims, dim=-1)
        mean = average_probs(frames, self.shares.tolist(), self.vocab_size)
        return mean.log().log_softmax(dim=-1)


class _FullContext:
    causal = False

    def set_chunk(self, chunk_size: int, left_context: int) -> None:
        """Accept any: what was stored was said before."""


class StoredDistributions(nn.Module):
    """Has of a model what recognising by its CTC head asks for.

    Attributes:
      fields: Shar fields of kind ``ctc`` that a batch must carry.
    """

    min_frames = 1
    padding_value = 0.0

    def __init__(
        self, fields: Sequence[str], dims: Sequence[int], vocab_size: int
    ) -> None:
        super().__init__()
        self.fields = tuple(fields)
        self.encoder = _FullContext()
        self.ctc_output = MeanOfFields(dims, vocab_size)

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the frames (N, T, sum of dims) of all fields, and their number (N,).

        Where one has a frame more than another, it is left out.

        Raises:
          ValueError: if the fields are of different frame rates.
        """
        told = [batch["fields"][name] for name in self.fields]
        shifts = {field["frame_shift"] for field in told}
        if len(shifts) > 1:
            raise ValueError(
                f"fields {list(self.fields)} have frame shifts {sorted(shifts)} s; "
                "only those of one have a mean"
            )
        lens = torch.stack([field["lens"] for field in told]).amin(dim=0)
        count = int(lens.max())
        return torch.cat([field["x"][:, :count] for field in told], dim=2), lens

    def forward_encoder(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Return what it is given."""
        return x, x_lens
