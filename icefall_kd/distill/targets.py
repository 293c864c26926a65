"""A teacher's frames that are distributions, beside the student's frames."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from icefall_kd import ENCODER_SHIFT
from icefall_kd.distill.term import NO_TARGET, StudentOutput, TermOutput

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


def has_targets(target: Mapping[str, Any]) -> bool:
    """Return whether any utterance of a batch has a target in this field."""
    return int(target["lens"].max()) > 0


def nothing(student: StudentOutput) -> TermOutput:
    """Return what a term says of a batch without any target."""
    zero = student.encoder_out.new_zeros((), dtype=torch.float32)
    return TermOutput(zero, 0, skipped={NO_TARGET: list(range(len(student.lens)))})


def delayed(
    student: Tensor, lens: Tensor, target: Mapping[str, Any], delay: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the frames of the student and of the teacher that answer each other.

    Student frame i + delay answers for teacher frame i.  Distributions cannot be
    averaged over time as embeddings are: the teacher must have the student's rate.

    An utterance of which the teacher has no frame has none in the result.

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
    if (((theirs - lens).abs() > _TOLERANCE) & (theirs > 0)).any():
        raise ValueError(
            f"the teacher has {theirs.tolist()} frames, the student {lens.tolist()}"
        )
    both = torch.minimum(theirs, (lens - delay).clamp(min=0))
    count = int(both.max())
    x = target["x"][:, :count].to(student.device)
    return student[:, delay : delay + count], x, both
