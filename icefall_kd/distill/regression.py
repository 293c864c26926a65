"""Regression of a teacher's normalised frames: what several terms have in common."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from icefall_kd.distill.losses import FRAME_LOSSES
from icefall_kd.zipformer.scaling import scaled_linear

_LEAST_STD = 1e-5  # a dimension that never moves must not become a division by zero


class TeacherHead(nn.Module):
    """What brings a student and one teacher into the space where they are compared.

    That is the teacher's, with mean 0 and deviation 1 in each dimension, so that
    teachers and layers of any scale weigh alike.  The student gets there by a linear
    map of its own; or, where it has the teacher's sizes and is to become like it, by
    the teacher's own mean and deviation, and then a student that is its teacher has no
    loss from the start.
    """

    def __init__(
        self,
        dim: int,
        mean: Sequence[float],
        std: Sequence[float],
        project: bool = True,
        least_share: float = 0.0,
    ) -> None:
        """Describe the space.

        Args:
          dim: of the student's frames.
          mean, std: D numbers each, over the teacher's set.
          project: whether the student is mapped; else ``dim`` must be D.
          least_share: of the mean deviation, what a dimension has at least.
        """
        super().__init__()
        deviation = torch.tensor(std, dtype=torch.float32)
        least = max(_LEAST_STD, least_share * float(deviation.mean()))
        # Small, so that it starts near the targets' mean, which is zero.
        self.proj = (
            scaled_linear(dim, len(mean), initial_scale=0.25) if project else None
        )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", deviation.clamp(min=least))

    def forward(self, x: Tensor) -> Tensor:
        """Map the student's (N, T, C) into the normalised space, (N, T, D)."""
        return self.normalise(x) if self.proj is None else self.proj(x)

    def normalise(self, x: Tensor) -> Tensor:
        """Map a teacher's (N, T, D) into the normalised space."""
        return (x - self.mean) / self.std


@dataclass(frozen=True)
class TargetPair:
    """What a student says in the place of a teacher, and what it should.

    Attributes:
      name: for the log.
      weight: of its losses.
      guess: (N, T, D) float, the student's.
      goal: (N, T, D) float, the teacher's.
      mask: (N, T) bool, True where nothing is compared.
    """

    name: str
    weight: float
    guess: Tensor
    goal: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Regression:
    """The losses of some lessons.

    Attributes:
      sum: scalar float32 with gradient, weighted; 0 of no lesson.
      extras: "<lesson>_<loss>" -> (its sum, detached; frames).
      suspects: utterances with a frame that is not finite, in order.
    """

    sum: Tensor
    extras: dict[str, tuple[Tensor, int]]
    suspects: tuple[int, ...]


def regress(
    lessons: Iterable[TargetPair], losses: Mapping[str, float], like: Tensor
) -> Regression:
    """Sum the losses of lessons over their frames.

    Args:
      losses: weight of each frame loss.
      like: a tensor on the device of the lessons.
    """
    total = like.new_zeros((), dtype=torch.float32)
    extras: dict[str, tuple[Tensor, int]] = {}
    suspects: set[int] = set()
    for lesson in lessons:
        for kind, scale in losses.items():
            value, frames = FRAME_LOSSES[kind](lesson.guess, lesson.goal, lesson.mask)
            total = total + lesson.weight * scale * value
            extras[f"{lesson.name}_{kind}"] = (value.detach(), frames)
        if not torch.isfinite(total.detach()):
            suspects.update(not_finite(lesson))
    return Regression(total, extras, tuple(sorted(suspects)))


def not_finite(lesson: TargetPair) -> list[int]:
    """Return the utterances with a valid frame that is not finite on either side."""
    finite = torch.isfinite(lesson.guess.detach()) & torch.isfinite(lesson.goal)
    bad = ~finite.all(dim=2) & ~lesson.mask
    return bad.any(dim=1).nonzero().flatten().tolist()


def chosen_losses(option: str, losses: Mapping[str, float]) -> dict[str, float]:
    """Return the frame losses that have a weight.

    Args:
      option: for the message, where they stand in the configuration.
    Raises:
      ValueError: if one is unknown.
    """
    unknown = sorted(set(losses) - set(FRAME_LOSSES))
    if unknown:
        raise ValueError(
            f"{option}: unknown {unknown}; known are {sorted(FRAME_LOSSES)}"
        )
    return {kind: weight for kind, weight in losses.items() if weight != 0}


def has_target(target: Mapping[str, Any], like: Tensor) -> Tensor:
    """Return (N,) bool, the utterances with a target, on the device of ``like``."""
    return (target["lens"] > 0).to(like.device)
