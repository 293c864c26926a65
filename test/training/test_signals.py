"""Ctrl-C and SIGTERM become a checkpoint."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from run_metrics import metrics
from training_runs import final

from icefall_kd.training import interruptions as signals
from icefall_kd.training import loop, student
from icefall_kd.training.checkpoint import load_newest_checkpoint
from icefall_kd.training.config import TrainConfig
from icefall_kd.training.interruptions import StopRequest, TrainingInterruptedError
from icefall_kd.training.run import train

DEFAULTS = TrainConfig.__dataclass_fields__
NUMBERS = (signal.SIGINT, signal.SIGTERM)


def terminate(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_request_is_noted_once_and_then_ends_the_process(number):
    before = [signal.getsignal(n) for n in NUMBERS]
    with StopRequest() as stop:
        assert not stop.asked
        terminate(number)
        assert stop.asked and stop.number == number
        # For the second one, in a collective operation of torch as well.
        assert signal.getsignal(number) == signal.SIG_DFL
    assert [signal.getsignal(n) for n in NUMBERS] == before
    code = (
        "import os, signal\nfrom icefall_kd.training.interruptions import StopRequest\n"
    )
    code += f"with StopRequest():\n for _ in range(2): os.kill(os.getpid(), {number})"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -number
    with StopRequest():
        pass
    assert [signal.getsignal(n) for n in NUMBERS] == before


def test_a_signal_that_is_ignored_stays_ignored():
    """A shell starts background jobs so, and sends them SIGTERM after Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            terminate(signal.SIGINT)
            assert not stop.asked
            terminate()
            assert stop.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "by, numbers",
    [
        ("torchrun", [signal.SIGINT] * 2),
        ("a script", [signal.SIGINT, signal.SIGTERM]),
    ],
)
def test_the_copy_that_torchrun_or_a_script_sends_is_no_second_request(
    by, numbers, monkeypatch
):
    if by == "torchrun":
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(signals, "FORWARDING", 0.2)
    with StopRequest() as stop:
        for number in numbers:
            terminate(number)
        assert stop.number == signal.SIGINT
        ended = os.fork()
        if not ended:  # the second request, in a process that may end
            stop._process = os.getpid()
            time.sleep(0.3)
            terminate()
            os._exit(0)
        assert os.waitpid(ended, 0)[1] == signal.SIGTERM


@pytest.mark.parametrize("times", [1, 2])
def test_a_request_during_validation_does_not_wait_for_its_end(
    times, only, monkeypatch
):
    config = only("ctc")
    short = dataclasses.replace(config.data, max_duration=2.0)  # several dev batches
    whole = dataclasses.replace(config, data=short)
    train(whole)
    config = dataclasses.replace(whole, exp_dir=f"{config.exp_dir}-broken")
    original = student.DistilledStudent.eval

    def eval_and_terminate(self):
        terminate(signal.SIGINT)
        return original(self)

    with monkeypatch.context() as m:
        m.setattr(student.DistilledStudent, "eval", eval_and_terminate)
        for _ in range(times):
            with pytest.raises(
                TrainingInterruptedError, match="wrote checkpoint-"
            ) as e:
                train(config)
            assert e.value.status == 130
    saved = load_newest_checkpoint(config.exp_dir)["state"]
    assert saved["epoch"] == 0 and saved["batch"] > 0 and saved["validating"]
    train(config)
    for kind in ("train", "dev"):
        assert metrics(config, kind) == metrics(whole, kind)
    for name, value in final(whole)["model_avg"].items():
        assert torch.equal(value, final(config)["model_avg"][name]), name
    rng = [final(c)["rng"][0]["torch"] for c in (whole, config)]
    assert torch.equal(*rng)


def test_a_request_in_a_skipped_batch_is_fulfilled_too(config, monkeypatch):
    original = loop.move_to_device

    def move_to_device(batch, device):
        terminate()
        batch = original(batch, device)
        batch["features"][:] = float("nan")
        return batch

    with monkeypatch.context() as m:
        m.setattr(loop, "move_to_device", move_to_device)
        with pytest.raises(TrainingInterruptedError, match="after update 0"):
            train(config)
    saved = load_newest_checkpoint(config.exp_dir)["state"]
    assert (saved["step"], saved["batch"], saved["bad_total"]) == (0, 1, 1)


def test_a_checkpoint_is_written_after_minutes_as_well(only, monkeypatch):
    """The clock is that of the main process, and begins again with each checkpoint."""
    clock, written = [0.0], []
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    train_batch, save = loop.Trainer._train_batch, loop.Trainer._save

    def train_for_a_minute(self, batch):
        clock[0] += 60
        return train_batch(self, batch)

    def note(self, path):
        written.append(path.name)
        save(self, path)

    monkeypatch.setattr(loop.Trainer, "_train_batch", train_for_a_minute)
    monkeypatch.setattr(loop.Trainer, "_save", note)
    config = only("ctc", num_epochs=1)
    data = dataclasses.replace(config.data, max_duration=2.0)
    config = dataclasses.replace(config, data=data, save_every_minutes=3)
    train(config)
    steps = final(config)["state"]["step"]
    assert steps > 8
    assert written == [
        *(f"checkpoint-{step}.pt" for step in range(3, steps + 1, 3)),
        "epoch-1.pt",
    ]
    assert DEFAULTS["save_every_minutes"].default == 10
