"""The lines of progress."""

import logging
from pathlib import Path

import torch
from run_metrics import metrics

from icefall_kd.core.distributed import World
from icefall_kd.training.report import Reporter
from icefall_kd.training.state import TrainState


def test_progress_has_the_steps_the_unit_and_the_time_by_the_recent_speed(
    config, caplog
):
    """Half of the first epoch took 100 s, while caches were cold."""
    caplog.set_level(logging.INFO)
    report = Reporter(config, World(0, 1, torch.device("cpu")), 100.0)
    state = TrainState(step=10, audio=50.0, seconds=100.0)
    Path(config.exp_dir).mkdir()
    report.open(state, {})
    for audio, seconds in ((5.0, 1.0), (15.0, 4.0)):
        report.metrics.add("speed", audio, seconds)
    report.progress(state, 0.01)
    assert (
        "epoch 1/2 step 10 of about 40: lr=0.01 speed=4 s of audio a second ETA 0:00:38"
        in caplog.text
    )
    assert report.metrics.means() == {}
    report.close()
    assert metrics(config) == [{"kind": "train", "step": 10, "epoch": 1, "lr": 0.01}]


def test_without_a_known_length_no_end_is_foretold(config, caplog):
    caplog.set_level(logging.INFO)
    report = Reporter(config, World(0, 1, torch.device("cpu")), 0.0)
    report.metrics.add("speed", 20.0, 5.0)
    report.progress(TrainState(step=10, audio=50.0), 0.01)
    assert "step 10: lr=0.01 speed=4 s of audio a second" in caplog.text
    assert "ETA" not in caplog.text
