"""Frame-wise regression losses: student first, target second, then the mask.

Each returns the sum over valid frames and their number; the loss of one frame does
not grow with D, so teachers of different widths weigh alike.

Distances to a teacher's distribution of which only the best tokens were kept.

A teacher's frame is the ids of its k best tokens, their log-probabilities, and the
mass of all other tokens (:mod:`icefall_kd.core.frames`).  Each function returns one
value a frame, (...) float32, in nats where it is an entropy.
"""

from collections.abc import Callable
from typing import Optional

import torch
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

_TINY = 1e-7  # of a probability, where its logarithm is taken


def squared_distance(
    log_probs: Tensor, ids: Tensor, teacher: Tensor, tail: Tensor
) -> Tensor:
    """Return sum over tokens of (p_teacher - p_student)^2, at most 2.

    The tail's tokens count as of no probability.  It is bounded where an entropy is
    not, so frames of blank alone do not rule (Inter-KD, arXiv:2211.15075).

    Args:
      log_probs: (..., V) float, the student's, normalised.
      ids:       (..., k) int64.
      teacher:   (..., k) float, log-probabilities.
      tail:      (...) float, not used.
    """
    probs = log_probs.float().exp()
    kept, goal = probs.gather(-1, ids), teacher.float().exp()
    return probs.square().sum(-1) + (goal.square() - 2.0 * goal * kept).sum(-1)


def divergence(log_probs: Tensor, ids: Tensor, teacher: Tensor, tail: Tensor) -> Tensor:
    """Return KL(teacher || student), all tokens of the tail taken as one.

    Arguments as in :func:`squared_distance`.
    """
    kept = log_probs.float().gather(-1, ids)
    goal = teacher.float().exp()
    rest = (1.0 - kept.exp().sum(-1)).clamp(min=_TINY)
    tail = tail.float().clamp(min=0.0)
    known = (goal * (teacher.float() - kept)).sum(-1)
    return known + tail * (tail.clamp(min=_TINY).log() - rest.log())


def cross_entropy(log_probs: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Return - sum over kept tokens of weight * log p_student.

    Args:
      log_probs: (..., V) float, the student's, normalised.
      ids:       (..., k) int64.
      weights:   (..., k) float, for example of :func:`essence`.
    """
    return -(weights * log_probs.float().gather(-1, ids)).sum(-1)


def essence(
    teacher: Tensor,
    size: Optional[int] = None,
    mass: Optional[float] = None,
    temperature: float = 1.0,
) -> Tensor:
    """Return the weights of the tokens that matter, renormalised; of others 0.

    Kept are the ``size`` most probable, and of these the fewest that together reach
    ``mass``.  Source: essence knowledge distillation, 2019, arXiv:1906.10834; the two
    rules of selection are ours.

    Args:
      teacher: (..., k) float, log-probabilities, best first.
      size:    tokens kept at most; None is all k.
      mass:    of probability that is enough; None keeps ``size``.
      temperature: above 1 flattens the weights.
    Returns:
      (..., k) float32, summing to 1.
    Raises:
      ValueError: if an argument is out of range.
    """
    k = teacher.size(-1)
    if size is not None and not 1 <= size <= k:
        raise ValueError(f"the essence's size is {size}, the field keeps {k} tokens")
    if mass is not None and not 0.0 < mass <= 1.0:
        raise ValueError(f"the essence's mass is {mass}, must be in (0, 1]")
    if temperature <= 0.0:
        raise ValueError(f"the temperature is {temperature}, must be positive")
    kept = torch.arange(k, device=teacher.device) < (size or k)
    kept = kept.expand(teacher.shape)
    if mass is not None:
        probs = teacher.float().exp()
        before = probs.cumsum(-1) - probs  # mass of the more probable ones
        kept = kept & (before < mass)
    scores = (teacher.float() / temperature).masked_fill(~kept, float("-inf"))
    return scores.softmax(-1)


Distance = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
DISTANCES: dict[str, Distance] = {"l2": squared_distance, "kl": divergence}
