"""SIGTERM becomes a checkpoint."""

import os
import signal
import subprocess
import sys

import pytest

from icefall_kd.training import loop
from icefall_kd.training.checkpoint import newest_checkpoint
from icefall_kd.training.run import train
from icefall_kd.training.signals import StopRequest, TrainingInterruptedError


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_request_is_noted_once_and_then_ends_the_process():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.asked
        terminate()
        assert stop.asked
        assert signal.getsignal(signal.SIGTERM) == before  # for the second one
    code = "import os, signal\nfrom icefall_kd.training.signals import StopRequest\n"
    code += "with StopRequest():\n for _ in range(2): os.kill(os.getpid(), 15)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGTERM
    with StopRequest():
        pass
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_request_during_validation_stops_behind_the_epoch(config, monkeypatch):
    original = loop.Trainer._validate

    def validate(self):
        if self.state.epoch == 0:
            terminate()
        return original(self)

    monkeypatch.setattr(loop.Trainer, "_validate", validate)
    with pytest.raises(TrainingInterruptedError, match="epoch-1.pt is written"):
        train(config)
    saved = newest_checkpoint(config.exp_dir)["state"]
    assert saved["epoch"] == 1 and saved["batch"] == 0
    train(config)
    assert newest_checkpoint(config.exp_dir)["state"]["epoch"] == 2


def test_a_request_in_a_skipped_batch_is_fulfilled_too(config, monkeypatch):
    original = loop.to_device

    def to_device(batch, device):
        terminate()
        batch = original(batch, device)
        batch["features"][:] = float("nan")
        return batch

    with monkeypatch.context() as m:
        m.setattr(loop, "to_device", to_device)
        with pytest.raises(TrainingInterruptedError, match="after update 0"):
            train(config)
    saved = newest_checkpoint(config.exp_dir)["state"]
    assert (saved["step"], saved["batch"], saved["bad_total"]) == (0, 1, 1)
