"""What every teacher offers: a name, its outputs and ``forward``.

Which layers of an encoder a teacher says: one, several, or their weighted sum.

Layer k is the input of block k, so 0 is what the first block gets and the number of
blocks is the encoder's output; negative numbers count from the end, -1 the output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Protocol, Union

import torch
from torch import Tensor

KINDS = ("embedding", "ctc", "path")
# Values of the option ``dtype`` of teachers that PyTorch runs.
DTYPES = {"float32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Output:
    """One thing that a teacher says; it becomes one field of the cuts.

    Attributes:
      kind:        one of :data:`KINDS`: "embedding" is (T, D); "ctc" is (T, 2 k + 1),
                   the k best tokens of a frame as :mod:`icefall_kd.core.frames` has it;
                   "path" is (T, 2 k + 2), these on a transducer's one-best path.
      dim:         values of a frame: D, 2 k + 1, or 2 k + 2.
      frame_shift: seconds between two frames.
      fingerprint: what identifies the numbers: model hash, layer, precision, context.
    """

    kind: str
    dim: int
    frame_shift: float
    fingerprint: dict[str, Any]


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher says about a batch, one of its outputs.

    Attributes:
      x:    (N, T, W) float32, zero beyond the valid frames; W is the output's ``dim``.
      lens: (N,) int64, valid frames, 1 <= lens <= T.
    """

    x: Tensor
    lens: Tensor


class Teacher(Protocol):
    """A frozen model that turns audio into targets.

    The output of an utterance depends on that utterance alone, never on the others
    of its batch, so that a stored target does not depend on how it was extracted.

    A teacher with an attribute ``needs_text`` that is True is given the transcripts as
    ``forward(waves, wave_lens, texts)``, N strings, "" where there is none.

    Attributes:
      name:    of the teacher, for messages.
      outputs: field name -> what it will hold.  A teacher that says one thing calls
               the field by its own name.
    """

    name: str
    outputs: Mapping[str, Output]

    def forward(self, waves: Tensor, wave_lens: Tensor) -> Mapping[str, TeacherOutput]:
        """Return all outputs for a batch, by field name.

        Args:
          waves:     (N, S) float32, 16 kHz, in [-1, 1], zero-padded.
          wave_lens: (N,) int64, valid samples, 1 <= wave_lens <= S.
        """
        ...


def check_waves(waves: Tensor, wave_lens: Tensor) -> None:
    """Refuse a batch of the wrong shape, with the shapes in the message.

    Raises:
      ValueError: unless waves is (N, S) and 1 <= wave_lens (N,) <= S.
    """
    if waves.dim() != 2 or wave_lens.shape != waves.shape[:1]:
        raise ValueError(
            f"expected waves (N, S) and wave_lens (N,), got {tuple(waves.shape)} "
            f"and {tuple(wave_lens.shape)}"
        )
    if len(wave_lens) and not (
        1 <= int(wave_lens.min()) and int(wave_lens.max()) <= waves.shape[1]
    ):
        raise ValueError(
            f"wave_lens must lie in [1, {waves.shape[1]}], got {wave_lens.tolist()}"
        )


Layers = Union[str, int, Sequence[int]]


@dataclass(frozen=True)
class LayerChoice:
    """The layers asked for; see :func:`choose_layers`.

    Attributes:
      layers:  their numbers, none negative, in the order asked for.
      weights: of their sum; None when each layer is a field of its own.
    """

    layers: tuple[int, ...]
    weights: Optional[tuple[float, ...]] = None

    @property
    def highest(self) -> int:
        """Return the number of blocks that must be run."""
        return max(self.layers)

    def fields(self, name: str) -> dict[str, dict]:
        """Return field name -> what its fingerprint says of the layers.

        A sum and a single layer are the field ``name``; several layers are
        ``<name>_layer<k>`` each.
        """
        if self.weights is not None or len(self.layers) == 1:
            weights = list(self.weights) if self.weights is not None else None
            return {name: {"layers": list(self.layers), "layer_weights": weights}}
        return {
            f"{name}_layer{k}": {"layers": [k], "layer_weights": None}
            for k in self.layers
        }

    def pick(self, name: str, hidden: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Return field name -> its values.

        Args:
          hidden: layer -> (N, T, D), of all the layers asked for.
        """
        if self.weights is None:
            return dict(zip(self.fields(name), (hidden[k] for k in self.layers)))
        weighted = (w * hidden[k].float() for k, w in zip(self.layers, self.weights))
        return {name: sum(weighted)}


def choose_layers(
    layers: Layers, layer_weights: Optional[Sequence[float]], num_layers: int
) -> LayerChoice:
    """Read the options ``layers`` and ``layer_weights``.

    Args:
      layers:        "last", a number, or several.
      layer_weights: of the sum of several layers, used as they are: they need not
                     add up to 1.
      num_layers:    blocks of the encoder; layers 0..num_layers exist.
    Raises:
      ValueError: if a layer does not exist or is named twice, or the weights do not
        fit the layers.
    """
    if layers == "last":
        layers = num_layers
    wanted = list(layers) if isinstance(layers, (list, tuple)) else [layers]
    if not wanted or not all(type(k) is int for k in wanted):
        raise ValueError(
            f"layers: {layers!r} is neither 'last', nor a number, nor a list of numbers"
        )
    absent = [k for k in wanted if not -num_layers - 1 <= k <= num_layers]
    if absent:
        raise ValueError(
            f"layers: the model has no layer {', '.join(map(str, absent))}: it has "
            f"{num_layers} blocks, so layers 0 to {num_layers}, or -1 to "
            f"{-num_layers - 1} from the end"
        )
    chosen = tuple(k if k >= 0 else num_layers + 1 + k for k in wanted)
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"layers: {wanted} names one layer twice")
    if layer_weights is None:
        return LayerChoice(chosen)
    if len(layer_weights) != len(chosen):
        raise ValueError(
            f"layer_weights: {len(layer_weights)} weights for {len(chosen)} layers"
        )
    return LayerChoice(chosen, tuple(float(w) for w in layer_weights))
