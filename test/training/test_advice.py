"""The hint for the learning rate."""

import pytest

from icefall_kd.training.advice import lr_hint, suggested_lr
from icefall_kd.training.checkpoint import newest_checkpoint
from icefall_kd.training.run import train


def test_the_hint_is_the_reference_there_and_follows_the_square_root():
    assert suggested_lr(4000.0) == pytest.approx(0.045)
    assert suggested_lr(1000.0) == pytest.approx(0.0225)
    assert lr_hint(0.03, 500.0, 2) == lr_hint(0.03, 1000.0, 1)


def test_a_run_logs_the_hint_and_keeps_its_own_rate(only, caplog):
    caplog.set_level("INFO")
    config = only("ctc", num_epochs=1)
    train(config)
    (line,) = [m for m in caplog.messages if m.startswith("learning rate")]
    assert "base_lr is 0.045, batches are of 5 s" in line and "gives 0.0016" in line
    assert newest_checkpoint(config.exp_dir)["config"]["optim"]["base_lr"] == 0.045
