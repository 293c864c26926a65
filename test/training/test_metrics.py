"""Running means and their lines."""

import json

import pytest
import torch
from dummies import full_disk

from icefall_kd.training.metrics import MetricsTracker, MetricsWriter, format_time


def test_means_are_weighted_by_counts():
    tracker = MetricsTracker()
    tracker.add("loss", torch.tensor(6.0), 3)
    tracker.add("loss", 2.0, 1)
    tracker.add("empty", 0.0, 0)
    assert tracker.means() == {"loss": 2.0}  # nothing was counted of the other
    assert MetricsTracker(tracker.state()).means() == tracker.means()


def test_lines_beyond_the_resumed_step_and_broken_ones_go(tmp_path):
    writer = MetricsWriter(tmp_path, 0, 0, tensorboard=False)
    for step in (1, 2, 3):
        writer.write("train", step, 1, {"loss": 1.0 / step})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"kind": "tr')
    MetricsWriter(tmp_path, 2, 0, tensorboard=False)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]


def test_a_validation_without_its_checkpoint_is_not_told_twice(tmp_path):
    writer = MetricsWriter(tmp_path, 0, 0, tensorboard=False)
    for epoch in (1, 2):
        writer.write("dev", 5 * epoch, epoch, {"loss": 1.0})
    MetricsWriter(tmp_path, 10, 1, tensorboard=False)  # killed before epoch-2.pt
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1]


def test_a_full_disk_is_told_with_the_file(tmp_path):
    writer = MetricsWriter(tmp_path, 0, 0, tensorboard=False)
    told = "metrics.jsonl: could not be written .*make room and start again"
    with full_disk(10), pytest.raises(OSError, match=told):
        writer.write("dev", 1, 1, {"loss": 1.0})


def test_tensorboard_gets_the_same_figures(tmp_path):
    writer = MetricsWriter(tmp_path, 0, 0, tensorboard=True)
    writer.write("dev", 7, 1, {"loss": 2.0})
    writer.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("dev/loss")] == [(7, 2.0)]


def test_times_read_as_hours_minutes_seconds():
    assert format_time(0) == "0:00:00" and format_time(3725.4) == "1:02:05"
