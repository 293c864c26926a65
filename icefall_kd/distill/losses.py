"""Frame-wise regression losses: student first, target second, then the mask.

Each returns the sum over valid frames and their number; the loss of one frame does
not grow with D, so teachers of different widths weigh alike.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

FrameLoss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, int]]


def _masked_sum(per_frame: Tensor, mask: Tensor) -> tuple[Tensor, int]:
    # masked_fill, not a product: what stands at padding may be infinite.
    total = per_frame.masked_fill(mask, 0.0).sum()
    return total, int((~mask).sum())


def _check(student: Tensor, target: Tensor, mask: Tensor) -> None:
    if student.shape != target.shape or student.shape[:-1] != mask.shape:
        raise ValueError(
            f"shapes differ: student {tuple(student.shape)}, "
            f"target {tuple(target.shape)}, mask {tuple(mask.shape)}"
        )


def l1(student: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, int]:
    """Mean absolute difference of each frame.

    Args:
      student: (N, T, D) float.
      target:  (N, T, D) float.
      mask:    (N, T) bool, True at padding.
    Returns:
      scalar float32, sum over valid frames of mean_d |s - t|, and their number.
    Raises:
      ValueError: if the shapes differ.
    """
    _check(student, target, mask)
    return _masked_sum((student.float() - target.float()).abs().mean(-1), mask)


def l2(student: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, int]:
    """Mean squared difference of each frame; arguments as in :func:`l1`."""
    _check(student, target, mask)
    return _masked_sum((student.float() - target.float()).square().mean(-1), mask)


def cosine(student: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, int]:
    """One minus the cosine of each frame, 0 to 2; arguments as in :func:`l1`."""
    _check(student, target, mask)
    similarity = F.cosine_similarity(student.float(), target.float(), dim=-1)
    return _masked_sum(1.0 - similarity, mask)


FRAME_LOSSES: dict[str, FrameLoss] = {"l1": l1, "l2": l2, "cosine": cosine}
