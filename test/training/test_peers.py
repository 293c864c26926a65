"""Real processes of a job of which one is killed, frozen or fails: none hangs."""

import os
import re
import signal
import time

import pytest
import ranks
import torch

from icefall_kd.core.distributed import World
from icefall_kd.training.interruptions import (
    PeerLostError,
    PeerWatch,
    TrainingInterruptedError,
)

QUICK = (0.3, 2.0)  # s, signs of life and patience
CALM = (1.0, 20.0)  # the same, for a machine that is busy with other tests


@pytest.mark.parametrize("lost, number", [(0, signal.SIGSTOP), (1, signal.SIGKILL)])
def test_a_process_beside_a_lost_one_ends_and_names_it(tmp_path, lost, number):
    """Rank 0 holds the store of the job, so that is lost with it."""
    with ranks.Job(ranks.run_sums, (*QUICK, -1, ""), tmp_path) as job:
        job.wait_for(lambda: "adding" in job.log(0) and "adding" in job.log(1))
        os.kill(job.processes[lost].pid, number)
        began = time.monotonic()
        assert job.end(1 - lost, 30) == 1
        assert time.monotonic() - began < 15
        who = "rank 0 or torchrun," if lost == 0 else "rank 1"
        assert re.search(f"{who} sends no heartbeat", job.log(1 - lost))
        assert "start the job again" in job.log(1 - lost)


def test_a_job_frozen_for_longer_than_its_patience_goes_on(tmp_path):
    """And still notices afterwards that a process is lost."""
    with ranks.Job(ranks.run_sums, (*QUICK, -1, ""), tmp_path) as job:
        job.wait_for(lambda: "adding" in job.log(0) and "adding" in job.log(1))
        pids = [process.pid for process in job.processes]
        for waking in (pids, pids[::-1]):
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(2 * QUICK[1])
            for pid in waking:
                os.kill(pid, signal.SIGCONT)
                time.sleep(QUICK[0])  # they do not wake at once
            time.sleep(QUICK[1])
        assert [process.exitcode for process in job.processes] == [None, None]
        assert job.log(0) + job.log(1) == "adding\n" * 2
        os.kill(pids[1], signal.SIGSTOP)
        assert job.end(0, 30) == 1
        assert "rank 1 sends no heartbeat" in job.log(0)


def test_the_error_of_one_process_is_told_by_the_others(tmp_path):
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


def test_without_a_store_a_broken_connection_is_still_explained(monkeypatch, caplog):
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


def test_alone_there_is_nobody_to_watch():
    for error in (ValueError("x"), RuntimeError("gloo"), TrainingInterruptedError()):
        with pytest.raises(type(error)):
            with PeerWatch(World(0, 1, torch.device("cpu"))):
                raise error
