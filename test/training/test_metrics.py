"""Running means, metrics.jsonl, progress lines and plateau warnings."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch
from dummies import full_disk
from run_metrics import metrics

from icefall_kd.core.distributed import World
from icefall_kd.training.checkpoint import TrainState
from icefall_kd.training.metrics import (
    MetricsTracker,
    MetricsWriter,
    Reporter,
    format_time,
    plateau_warnings,
)
from icefall_kd.training.run import train

ALONE = World(0, 1, torch.device("cpu"))
FIELDS = {"embedding": ("hubert", "whisper")}


def test_means_are_weighted_by_counts():
    tracker = MetricsTracker()
    tracker.add("loss", torch.tensor(6.0), 3)
    tracker.add("loss", 2.0, 1)
    tracker.add("empty", 0.0, 0)
    assert tracker.means(ALONE) == {"loss": 2.0}  # "empty" has no count
    assert MetricsTracker(tracker.state_dict()).means(ALONE) == {"loss": 2.0}


def test_lines_after_the_resumed_step_and_broken_lines_are_removed(tmp_path):
    writer = MetricsWriter(tmp_path, 0, 0, tensorboard=False)
    for step in (1, 2, 3):
        writer.write("train", step, 1, {"loss": 1.0 / step})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"kind": "tr')
    MetricsWriter(tmp_path, 2, 0, tensorboard=False)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]


def test_a_validation_without_its_checkpoint_is_removed(tmp_path):
    writer = MetricsWriter(tmp_path, 0, 0, tensorboard=False)
    for epoch in (1, 2):
        writer.write("dev", 5 * epoch, epoch, {"loss": 1.0})
    MetricsWriter(tmp_path, 10, 1, tensorboard=False)  # killed before epoch-2.pt
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1]


def test_a_full_disk_error_names_the_file(tmp_path):
    writer = MetricsWriter(tmp_path, 0, 0, tensorboard=False)
    with full_disk(10), pytest.raises(OSError, match="metrics.jsonl.*make room"):
        writer.write("dev", 1, 1, {"loss": 1.0})


def test_tensorboard_has_the_same_values(tmp_path):
    writer = MetricsWriter(tmp_path, 0, 0, tensorboard=True)
    writer.write("dev", 7, 1, {"loss": 2.0})
    writer.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("dev/loss")] == [(7, 2.0)]


def test_times_are_hours_minutes_seconds():
    assert format_time(0) == "0:00:00" and format_time(3725.4) == "1:02:05"


def test_the_remaining_time_follows_from_the_recent_speed(config, caplog):
    """Half of the first epoch took 100 s, while caches were cold."""
    caplog.set_level(logging.INFO)
    report = Reporter(config, ALONE, 100.0)
    state = TrainState(step=10, audio=50.0, seconds=100.0)
    Path(config.exp_dir).mkdir()
    report.open(state, {})
    for audio, seconds in ((5.0, 1.0), (15.0, 4.0)):
        report.metrics.add("speed", audio, seconds)
    report.report_progress(state, 0.01)
    assert "epoch 1/2 step 10 of about 40: lr=0.01 speed=4 s of audio" in caplog.text
    assert "ETA 0:00:38" in caplog.text
    assert report.metrics.means(ALONE) == {}
    report.close()
    (line,) = metrics(config)
    assert line.pop("hours") == pytest.approx(50 / 3600)
    assert line == {"kind": "train", "step": 10, "epoch": 1, "lr": 0.01}


def test_a_line_of_the_log_has_the_file_of_its_caller(config, caplog):
    caplog.set_level(logging.INFO)
    Reporter(config, ALONE, 100.0).log("wrote a checkpoint")
    assert caplog.records[-1].pathname == __file__


def test_no_remaining_time_is_given_for_data_of_unknown_length(config, caplog):
    caplog.set_level(logging.INFO)
    report = Reporter(config, ALONE, 0.0)
    report.metrics.add("speed", 20.0, 5.0)
    report.report_progress(TrainState(step=10, audio=50.0), 0.01)
    assert "step 10: lr=0.01 speed=4 s of audio" in caplog.text
    assert "ETA" not in caplog.text


def plateaus(caplog):
    messages = [r.getMessage() for r in caplog.records]
    return [m for m in messages if "learns little" in m]


def test_a_run_warns_once_about_a_teacher_whose_loss_does_not_fall(caplog, config):
    # In a dozen updates on noise, the loss hardly falls.
    config = dataclasses.replace(config, num_epochs=2, stall_steps=8)
    with caplog.at_level(logging.WARNING):
        train(config)
    (warning,) = plateaus(caplog)
    assert warning.startswith("term 'embedding'")
    assert "after 8 updates" in warning and "teacher_a, teacher_b" in warning


def write_metrics(path, values):
    line = '{{"kind": "train", "step": {}, "epoch": 1, "embedding": {}}}\n'
    path.write_text("".join(line.format(10 * n, v) for n, v in enumerate(values, 1)))
    return path


def test_a_plateau_compares_the_mean_of_the_last_lines_with_the_first(tmp_path):
    falls = write_metrics(tmp_path / "a", [2.0, 1.5, 1.8, 1.7, 2.1])
    still = write_metrics(tmp_path / "b", [2.0, 1.5, 1.9, 1.9, 2.0])
    assert not list(plateau_warnings(falls, FIELDS, 50))
    (warning,) = plateau_warnings(still, FIELDS, 50)
    assert "is 1.933 after 50 updates, from 2:" in warning
    assert "hubert, whisper" in warning


@pytest.mark.parametrize(
    "done, stall_steps, warnings",
    [(90, 100, [1, 0, 0]), (100, 100, [0, 0, 0]), (0, 110, [0, 1, 0]), (0, 0, [0] * 3)],
)
def test_a_plateau_is_checked_once_when_stall_steps_pass(
    config, caplog, done, stall_steps, warnings
):
    config = dataclasses.replace(config, stall_steps=stall_steps)
    report = Reporter(config, ALONE, 0.0)
    Path(config.exp_dir).mkdir()
    path = write_metrics(Path(config.exp_dir) / "metrics.jsonl", [1.0] * 12)
    lines = path.read_text()
    report.open(TrainState(step=done), FIELDS)
    path.write_text(lines)  # opening removed those after ``done``
    counts = []
    for step in (105, 120, 130):
        caplog.clear()
        report.report_progress(TrainState(step=step, audio=1.0), 0.01)
        counts.append(len(plateaus(caplog)))
    assert counts == warnings
