"""Losses of single frames: regression, and distances between token distributions."""

from collections.abc import Callable
from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional as F

# Each maps student and target (..., D) to (...).  The mean over D makes teachers of
# different dimension comparable.
FRAME_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda x, y: (x - y).abs().mean(-1),
    "l2": lambda x, y: (x - y).square().mean(-1),
    "cosine": lambda x, y: 1.0 - F.cosine_similarity(x, y, dim=-1),
}

_MIN_PROB = 1e-7  # minimum of the argument of a logarithm


def sum_frame_loss(
    kind: str, student: Tensor, target: Tensor, mask: Tensor
) -> tuple[Tensor, int]:
    """Return the sum of a regression loss over valid frames, and their number.

    Args:
      kind:    "l1", "l2" or "cosine" (one minus the cosine).
      student: (N, T, D) float.
      target:  (N, T, D) float.
      mask:    (N, T) bool, True at padding.
    Returns:
      scalar float32, and the number of valid frames.
    Raises:
      ValueError: if the shapes differ.
    """
    if student.shape != target.shape or student.shape[:-1] != mask.shape:
        raise ValueError(
            f"shapes do not match: student {tuple(student.shape)}, "
            f"target {tuple(target.shape)}, mask {tuple(mask.shape)}. Pass (N, T, D) "
            "twice, and (N, T)"
        )
    per_frame = FRAME_LOSSES[kind](student.float(), target.float())
    # masked_fill, not a product: padding may contain infinite values.
    return per_frame.masked_fill(mask, 0.0).sum(), int((~mask).sum())


def squared_distance(
    log_probs: Tensor, ids: Tensor, teacher: Tensor, tail: Tensor
) -> Tensor:
    """Return the sum over tokens of (p_teacher - p_student)^2, at most 2.

    Tokens outside the teacher's k best have probability 0 here.  Unlike the KL
    divergence, the distance is bounded, so frames of blank do not dominate.
    Source: Inter-KD, 2022, arXiv:2211.15075.

    Args:
      log_probs: (..., V) float, the student's, normalised.
      ids:       (..., k) int64, the teacher's k best tokens.
      teacher:   (..., k) float, their log-probabilities.
      tail:      (...) float, probability of all other tokens; not used here.
    Returns:
      (...) float32.
    """
    probs = log_probs.float().exp()
    student_probs, teacher_probs = probs.gather(-1, ids), teacher.float().exp()
    cross = (teacher_probs.square() - 2.0 * teacher_probs * student_probs).sum(-1)
    return probs.square().sum(-1) + cross


def divergence(log_probs: Tensor, ids: Tensor, teacher: Tensor, tail: Tensor) -> Tensor:
    """Return KL(teacher || student) in nats, with the tail as one token.

    The arguments and the result are those of :func:`squared_distance`.
    """
    student, teacher = log_probs.float().gather(-1, ids), teacher.float()
    student_tail = (1.0 - student.exp().sum(-1)).clamp(min=_MIN_PROB)
    tail = tail.float().clamp(min=0.0)
    best = (teacher.exp() * (teacher - student)).sum(-1)
    return best + tail * (tail.clamp(min=_MIN_PROB).log() - student_tail.log())


DISTANCES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "l2": squared_distance,
    "kl": divergence,
}


def cross_entropy(log_probs: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Return the cross-entropy, -sum over k tokens of weight * log p_student.

    Args:
      log_probs: (..., V) float, the student's, normalised.
      ids:       (..., k) int64.
      weights:   (..., k) float, for example from :func:`select_essence`.
    Returns:
      (...) float32, in nats.
    """
    return -(weights * log_probs.float().gather(-1, ids)).sum(-1)


def select_essence(
    teacher: Tensor,
    size: Optional[int] = None,
    mass: Optional[float] = None,
    temperature: float = 1.0,
) -> Tensor:
    """Select the most probable tokens, and renormalise their probabilities.

    The selection is the ``size`` most probable tokens, and of these the fewest that
    together reach ``mass``.
    Source: essence knowledge distillation, 2019, arXiv:1906.10834; the two selection
    rules are ours.

    Args:
      teacher: (..., k) float, log-probabilities, best first.
      size:    maximum number of tokens; None is k.
      mass:    total probability to reach, 0 to 1; None selects ``size`` tokens.
      temperature: above 1 flattens the result.
    Returns:
      (..., k) float32 with sum 1; 0 for tokens that are not selected.
    Raises:
      ValueError: if an argument is out of range.
    """
    k = teacher.size(-1)
    if size is not None and not 1 <= size <= k:
        raise ValueError(f"size: {size} is outside 1..{k}, the tokens of a frame")
    if mass is not None and not 0.0 < mass <= 1.0:
        raise ValueError(f"mass: {mass} is outside (0, 1]. Use a probability")
    if temperature <= 0.0:
        raise ValueError(f"temperature: {temperature} is invalid. Use one above 0")
    selected = torch.arange(k, device=teacher.device) < (size or k)
    selected = selected.expand(teacher.shape)
    if mass is not None:
        probs = teacher.float().exp()
        mass_before = probs.cumsum(-1) - probs
        selected = selected & (mass_before < mass)
    scores = (teacher.float() / temperature).masked_fill(~selected, float("-inf"))
    return scores.softmax(-1)
