"""What every teacher offers: a name, a rate, a size, a fingerprint and ``forward``."""

from dataclasses import dataclass
from typing import Any, Dict, Protocol

from torch import Tensor


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher says about a batch.

    Attributes:
      embedding: (N, T, D) float32, zero beyond the valid frames.
      lens:      (N,) int64, valid frames, 1 <= lens <= T.
    """

    embedding: Tensor
    lens: Tensor


class Teacher(Protocol):
    """A frozen model that turns audio into targets.

    The output of an utterance depends on that utterance alone, never on the others
    of its batch, so that a stored target does not depend on how it was extracted.

    Attributes:
      name:        key of :data:`icefall_kd.teachers.TEACHERS`.
      frame_shift: seconds between two frames of the output.
      dim:         D, size of one frame.
    """

    name: str
    frame_shift: float
    dim: int

    def fingerprint(self) -> Dict[str, Any]:
        """Return what identifies the output: model hash, layer, precision, context."""
        ...

    def forward(self, waves: Tensor, wave_lens: Tensor) -> TeacherOutput:
        """Return the embeddings of a batch.

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
