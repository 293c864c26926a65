"""Values that change with the number of training batches seen."""

from collections.abc import Iterator
from typing import Optional, Union

import torch
from torch import nn

# Batches after which every part of the reference recipe is warmed up.  All points
# of all schedules are written on this axis; `stretch_schedules` fits them to a run.
REFERENCE_WARMUP = 4000.0


class ScheduledFloat(nn.Module):
    """A float that is a piecewise linear function of the batch count.

    ``float(s)`` interpolates between the points and is constant beyond them.
    Outside training, or before a batch count is known, it is ``default``.
    It is a module, without parameters, so that ``model.modules()`` finds it.

    >>> rate = ScheduledFloat((0.0, 0.2), (4000.0, 0.0))
    >>> rate.batch_count = 1000.0
    >>> round(float(rate), 3)
    0.15

    Args:
      points: (batch, value) pairs, in increasing order of batch.
      default: value outside training.
    Raises:
      ValueError: if there is no point or the batches do not increase.
    """

    def __init__(self, *points: tuple[float, float], default: float = 0.0) -> None:
        super().__init__()
        batches = [batch for batch, _ in points]
        if not points or any(b <= a for a, b in zip(batches, batches[1:])):
            raise ValueError(f"batches of a schedule must increase, got {points}")
        self.points = tuple((float(batch), float(value)) for batch, value in points)
        self.default = float(default)
        self.batch_count: Optional[float] = None
        self.stretch = 1.0

    def __float__(self) -> float:
        if self.batch_count is None or not self.training or torch.jit.is_tracing():
            return self.default
        return self.at(self.batch_count / self.stretch)

    def at(self, batch: float) -> float:
        """Return the value at ``batch``, in batches of the unstretched schedule."""
        left_batch, left = self.points[0]
        if batch <= left_batch:
            return left
        for right_batch, right in self.points[1:]:
            if batch <= right_batch:
                share = (batch - left_batch) / (right_batch - left_batch)
                return left + share * (right - left)
            left_batch, left = right_batch, right
        return left

    def extra_repr(self) -> str:
        return f"{self.points}, stretch={self.stretch:g}, now={float(self):g}"


FloatLike = Union[float, ScheduledFloat]


def schedules(module: nn.Module) -> Iterator[ScheduledFloat]:
    """Yield every schedule inside ``module``."""
    for child in module.modules():
        if isinstance(child, ScheduledFloat):
            yield child


def set_batch_count(module: nn.Module, batch_count: float) -> None:
    """Tell every schedule inside ``module`` how many batches were trained.

    Args:
      module: a model, wrapped for distributed training or not.
      batch_count: batches of the run so far; where they are not the reference's 600
        s, :func:`stretch_schedules` says so (``model.encoder.warmup_batches``).
    """
    for schedule in schedules(module):
        schedule.batch_count = float(batch_count)


def stretch_schedules(module: nn.Module, warmup_batches: float) -> None:
    """Fit the schedules of ``module`` to a run that is warm after so many batches.

    Every point moves by ``warmup_batches / 4000``: regularisers and dropout of a
    short run then pass through the same values as those of a long one.

    Raises:
      ValueError: if ``warmup_batches`` is not positive.
    """
    if warmup_batches <= 0:
        raise ValueError(f"warmup_batches must be positive, got {warmup_batches}")
    for schedule in schedules(module):
        schedule.stretch = warmup_batches / REFERENCE_WARMUP
