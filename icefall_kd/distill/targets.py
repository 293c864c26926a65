"""A teacher's frames that are distributions, beside the student's frames."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from icefall_kd import ENCODER_SHIFT

_TOLERANCE = 2  # frames that a teacher may have more or less than the student


def check_kind(option: str, info: Any, kind: str) -> None:
    """Refuse a field of another kind than a term reads.

    Raises:
      ValueError: naming the option, the field and both kinds.
    """
    if info.kind != kind:
        raise ValueError(
            f"{option}: field '{info.name}' is of kind '{info.kind}', not '{kind}'"
        )


def delayed(
    student: Tensor, lens: Tensor, target: Mapping[str, Any], delay: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the frames of the student and of the teacher that answer each other.

    Student frame i + delay answers for teacher frame i.  Distributions cannot be
    averaged over time as embeddings are: the teacher must have the student's rate.

    Args:
      student: (N, T, ...) float.
      lens:    (N,) int64, valid frames of the student.
      target:  a field of a batch: "x" (N, T', W), "lens" (N,), "frame_shift".
      delay:   frames.
    Returns:
      student (N, K, ...), teacher (N, K, W), and the valid frames of both (N,).
    Raises:
      ValueError: if the teacher has another rate, or its lengths differ by more than
        two frames.
    """
    if abs(target["frame_shift"] - ENCODER_SHIFT) > 1e-6:
        raise ValueError(
            f"distributions every {target['frame_shift']} s cannot be compared with a "
            f"student's every {ENCODER_SHIFT} s; use a teacher of the student's rate"
        )
    theirs = target["lens"].to(lens.device)
    if ((theirs - lens).abs() > _TOLERANCE).any():
        raise ValueError(
            f"the teacher has {theirs.tolist()} frames, the student {lens.tolist()}"
        )
    both = torch.minimum(theirs, (lens - delay).clamp(min=0))
    count = int(both.max())
    x = target["x"][:, :count].to(student.device)
    return student[:, delay : delay + count], x, both
