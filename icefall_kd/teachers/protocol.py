"""What every teacher offers: a name, its outputs and ``forward``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

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
                   the k best tokens of a frame as :mod:`icefall_kd.cache.topk` has it;
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
