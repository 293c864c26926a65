"""Schedules over the batch count."""

import pytest
from torch import nn

from icefall_kd.zipformer.regularisers import (
    ScheduledFloat,
    set_batch_count,
    stretch_schedules,
)


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = ScheduledFloat((0.0, 0.2), (100.0, 0.1), (300.0, 0.0), default=0.5)


@pytest.mark.parametrize(
    "batch, value", [(0, 0.2), (50, 0.15), (100, 0.1), (200, 0.05), (300, 0), (1e6, 0)]
)
def test_value_is_interpolated_and_constant_beyond(batch, value):
    holder = Holder()
    set_batch_count(holder, batch)
    assert float(holder.rate) == pytest.approx(value)


def test_default_holds_outside_training_and_before_a_count():
    holder = Holder()
    assert float(holder.rate) == 0.5
    set_batch_count(holder, 100)
    assert float(holder.eval().rate) == 0.5
    assert float(holder.train().rate) == pytest.approx(0.1)


def test_stretching_moves_the_points_with_the_warm_up():
    holder = Holder()
    stretch_schedules(holder, 400.0)  # a tenth of the reference
    set_batch_count(holder, 5)
    assert float(holder.rate) == pytest.approx(0.15)


def test_points_must_increase():
    with pytest.raises(ValueError, match="increase"):
        ScheduledFloat((10.0, 1.0), (10.0, 2.0))


def test_warm_up_must_be_positive():
    with pytest.raises(ValueError, match="warmup_batches"):
        stretch_schedules(Holder(), 0)
