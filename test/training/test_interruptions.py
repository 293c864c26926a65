"""Runs stopped by signals, and jobs that lose a process."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks
import torch
from run_metrics import metrics
from training_runs import change, final

from icefall_kd.core.distributed import World
from icefall_kd.training import interruptions, loop, student, updates
from icefall_kd.training.checkpoint import load_newest_checkpoint
from icefall_kd.training.config import TrainConfig
from icefall_kd.training.interruptions import (
    PeerLostError,
    PeerWatch,
    StopRequest,
    TrainingInterruptedError,
)
from icefall_kd.training.run import train
from icefall_kd.transducer.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def terminate(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_the_process(number):
    before = [signal.getsignal(n) for n in SIGNALS]
    with StopRequest() as stop:
        assert not stop.is_requested
        terminate(number)
        assert stop.is_requested and stop.number == number
        # So that a second signal also ends a collective operation of torch.
        assert signal.getsignal(number) == signal.SIG_DFL
    assert [signal.getsignal(n) for n in SIGNALS] == before
    child = os.fork()
    if not child:
        with StopRequest():
            terminate(number)
            terminate(number)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == number
    with StopRequest():
        pass
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_an_ignored_signal_stays_ignored():
    """A shell starts background jobs with SIGINT ignored; SIGTERM stops them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            terminate(signal.SIGINT)
            assert not stop.is_requested
            terminate()
            assert stop.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "sender, numbers",
    [
        ("torchrun", [signal.SIGINT] * 2),
        ("a script", [signal.SIGINT, signal.SIGTERM]),
    ],
)
def test_a_copy_of_the_signal_by_torchrun_or_a_script_is_the_same_request(
    sender, numbers, monkeypatch
):
    if sender == "torchrun":
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(interruptions, "FORWARDING_TIME", 0.2)
    with StopRequest() as stop:
        for number in numbers:
            terminate(number)
        assert stop.number == signal.SIGINT
        ended = os.fork()
        if not ended:  # in a child, which the second request may end
            stop._process = os.getpid()
            time.sleep(0.3)
            terminate()
            os._exit(0)
        assert os.waitpid(ended, 0)[1] == signal.SIGTERM


def test_a_signal_during_validation_stops_at_once_and_resumes_exactly(
    only, monkeypatch
):
    """The second signal arrives in the validation of the resumed run."""
    data = dict(max_duration=2.0)  # several dev batches
    uninterrupted = change(only("ctc"), data=data)
    train(uninterrupted)
    config = change(uninterrupted, exp_dir=f"{uninterrupted.exp_dir}-stopped")
    original = student.DistilledStudent.eval

    def eval_and_terminate(self):
        terminate(signal.SIGINT)
        return original(self)

    with monkeypatch.context() as m:
        m.setattr(student.DistilledStudent, "eval", eval_and_terminate)
        for _ in range(2):
            with pytest.raises(TrainingInterruptedError, match="checkpoint-") as e:
                train(config)
            assert e.value.status == 130
            saved = load_newest_checkpoint(config.exp_dir)["state"]
            assert saved["epoch"] == 0 and saved["batch"] > 0 and saved["validating"]
    train(config)
    for kind in ("train", "dev"):
        assert metrics(config, kind) == metrics(uninterrupted, kind)
    for name, value in final(uninterrupted)["model_avg"].items():
        assert torch.equal(value, final(config)["model_avg"][name]), name
    rng = [final(c)["rng"][0]["torch"] for c in (uninterrupted, config)]
    assert torch.equal(*rng)


def test_a_signal_in_a_skipped_batch_stops_the_run(config, monkeypatch):
    original = updates.move_to_device

    def move_to_device(batch, device):
        terminate()
        batch = original(batch, device)
        batch["features"][:] = float("nan")
        return batch

    with monkeypatch.context() as m:
        m.setattr(updates, "move_to_device", move_to_device)
        with pytest.raises(TrainingInterruptedError, match="after update 0"):
            train(config)
    saved = load_newest_checkpoint(config.exp_dir)["state"]
    assert (saved["step"], saved["batch"], saved["bad_total"]) == (0, 1, 1)


def test_a_checkpoint_is_written_every_few_minutes(only, monkeypatch):
    """The clock of rank 0 restarts with each checkpoint."""
    clock, written = [0.0], []
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    train_batch, save = loop.Trainer._train_batch, loop.Trainer._save

    def train_for_a_minute(self, batch, is_last):
        clock[0] += 60
        train_batch(self, batch, is_last)

    def note(self, path):
        written.append(path.name)
        save(self, path)

    monkeypatch.setattr(loop.Trainer, "_train_batch", train_for_a_minute)
    monkeypatch.setattr(loop.Trainer, "_save", note)
    config = only("ctc", num_epochs=1)
    config = change(config, save_every_minutes=3, data=dict(max_duration=2.0))
    train(config)
    steps = final(config)["state"]["step"]
    assert steps > 8
    assert written == [
        *(f"checkpoint-{step}.pt" for step in range(3, steps + 1, 3)),
        "epoch-1.pt",
    ]
    assert TrainConfig("exp").save_every_minutes == 10


@pytest.fixture
def long(config):
    """Return a run with enough short batches to be stopped within an epoch."""
    data = dict(max_duration=3.0, num_workers=1)
    return change(config, num_epochs=4, save_every_n=3, data=data)


def start(config):
    """Start the training command."""
    path = ranks.save_config(config, Path(config.exp_dir).with_suffix(".yaml"))
    return subprocess.Popen(
        [sys.executable, "-m", "icefall_kd.bin.train", "--config", path],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        start_new_session=True,
    )


def signal_at(process, config, step, number):
    """Send a signal once ``step`` is in the metrics; return status and log.

    The whole process group gets it, including the loader's worker, as from a terminal
    and ``kill 0``.
    """
    path = Path(config.exp_dir) / "metrics.jsonl"
    pattern = re.compile(r'"kind": "train", "step": (\d+),')
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        steps = pattern.findall(path.read_text()) if path.exists() else []
        if steps and int(steps[-1]) >= step:
            os.killpg(process.pid, number)
            break
        time.sleep(0.005)
    _, log = process.communicate(timeout=240)
    return process.returncode, log


@pytest.mark.slow
def test_a_run_stopped_by_signals_equals_the_uninterrupted_run(long, tmp_path):
    _, log = (uninterrupted := start(long)).communicate(timeout=240)
    assert uninterrupted.returncode == 0, log[-3000:]
    stopped = dataclasses.replace(long, exp_dir=str(tmp_path / "stopped"))

    last = 2
    for number, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        status, log = signal_at(start(stopped), stopped, last + 3, number)
        assert status == expected and "Traceback" not in log, log[-3000:]
        last = metrics(stopped)[-1]["step"]
        assert f"after update {last}, wrote checkpoint-{last}.pt" in log
        assert load_newest_checkpoint(stopped.exp_dir)["state"]["step"] == last

    status, log = signal_at(start(stopped), stopped, last + 7, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert re.search(rf"resuming from epoch \d step {last}\n", log), log[-3000:]

    _, log = (rest := start(stopped)).communicate(timeout=240)
    assert rest.returncode == 0 and "resuming from" in log, log[-3000:]
    for kind in ("train", "epoch", "dev"):
        assert metrics(stopped, kind) == metrics(long, kind)
    name = f"epoch-{long.num_epochs}.pt"
    there, here = (load_checkpoint(Path(c.exp_dir) / name) for c in (long, stopped))
    for part in ("model", "model_avg", "heads"):
        for key, value in there[part].items():
            assert torch.equal(value, here[part][key]), key
    assert {**there["state"], "seconds": 0} == {**here["state"], "seconds": 0}


QUICK = (0.3, 2.0)  # s, heartbeat and patience
CALM = (1.0, 20.0)  # the same, for a machine that is busy with other tests


@pytest.mark.parametrize("lost, number", [(0, signal.SIGSTOP), (1, signal.SIGKILL)])
def test_a_process_ends_and_names_a_lost_process(tmp_path, lost, number):
    """Rank 0 holds the store of the job, which is lost with it."""
    with ranks.Job(ranks.run_sums, (*QUICK, -1, ""), tmp_path) as job:
        job.wait_for(lambda: "adding" in job.log(0) and "adding" in job.log(1))
        os.kill(job.processes[lost].pid, number)
        began = time.monotonic()
        assert job.end(1 - lost, 30) == 1
        assert time.monotonic() - began < 15
        who = "rank 0 or torchrun," if lost == 0 else "rank 1"
        assert re.search(f"{who} sends no heartbeat", job.log(1 - lost))
        assert "start the job again" in job.log(1 - lost)


def test_a_job_that_is_frozen_as_a_whole_continues(tmp_path):
    """The watch still detects a lost process afterwards."""
    with ranks.Job(ranks.run_sums, (*QUICK, -1, ""), tmp_path) as job:
        job.wait_for(lambda: "adding" in job.log(0) and "adding" in job.log(1))
        pids = [process.pid for process in job.processes]
        for order in (pids, pids[::-1]):
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(2 * QUICK[1])
            for pid in order:
                os.kill(pid, signal.SIGCONT)
                time.sleep(QUICK[0])  # they do not resume at once
            time.sleep(QUICK[1])
        assert [process.exitcode for process in job.processes] == [None, None]
        assert job.log(0) + job.log(1) == "adding\n" * 2
        os.kill(pids[1], signal.SIGSTOP)
        assert job.end(0, 30) == 1
        assert "rank 1 sends no heartbeat" in job.log(0)


def test_the_error_of_one_process_reaches_the_others(tmp_path):
    message = "cut x-17: damaged"
    with ranks.Job(ranks.run_sums, (*CALM, 1, message), tmp_path, size=3) as job:
        for rank in range(3):
            assert job.end(rank, 30) == 1
        for rank in (0, 2):
            found = f"PeerLostError: rank 1: ValueError: {message}; start the job again"
            assert found in job.log(rank) or f"train: rank 1: {message}" in job.log(
                rank
            )
        assert "PeerLostError" not in job.log(1)


def test_a_broken_connection_without_a_store_is_explained(monkeypatch, caplog):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(
        PeerLostError, match="another process of the job is lost; start"
    ):
        with PeerWatch(World(0, 2, torch.device("cpu"))):
            raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    assert "no store" in caplog.text
    with pytest.raises(RuntimeError, match="^shapes differ$"):
        with PeerWatch(World(0, 2, torch.device("cpu"))):
            raise RuntimeError("shapes differ")


def test_a_single_process_watches_nothing():
    for error in (ValueError("x"), RuntimeError("gloo"), TrainingInterruptedError()):
        with pytest.raises(type(error)):
            with PeerWatch(World(0, 1, torch.device("cpu"))):
                raise error
