"""Worker processes and the prefetching thread."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from icefall_kd.core.processes import (
    leave_signals_to_parent,
    parallel_map,
    prefetch,
)


def test_ctrl_c_ends_worker_processes_without_output(capfd, tmp_path):
    """A terminal sends SIGINT to all processes of the command."""
    started = [tmp_path / "first", tmp_path / "second"]
    others = set(multiprocessing.active_children())  # of other tests

    def send_signals():
        while not all(path.exists() for path in started):
            time.sleep(0.05)
        for job in set(multiprocessing.active_children()) - others:
            os.kill(job.pid, signal.SIGINT)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)

    work = "import time; open({!r}, 'w').close(); time.sleep(600)"
    codes = [work.format(str(path)) for path in started]
    threading.Thread(target=send_signals).start()
    with pytest.raises(KeyboardInterrupt):
        list(parallel_map(exec, codes, num_jobs=2))
    assert set(multiprocessing.active_children()) <= others
    assert capfd.readouterr().err == ""


def test_a_loader_worker_ends_at_the_second_sigterm():
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def work():
        leave_signals_to_parent()
        ready.set()
        while True:
            time.sleep(0.05)

    worker = context.Process(target=work)
    worker.start()
    assert ready.wait(10)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
        worker.join(0.3)
        assert worker.exitcode is None
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == -signal.SIGTERM


def find_threads():
    return [t for t in threading.enumerate() if t.name == "prefetch"]


def test_prefetch_keeps_the_order_and_computes_items_ahead():
    computed = []

    def make():
        for n in range(20):
            computed.append(n)
            yield n

    items = prefetch(make(), size=2)
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while len(computed) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert computed == [0, 1, 2, 3]  # one used, two in the queue, one in the thread
    assert list(items) == list(range(1, 20))


def test_prefetch_raises_an_error_after_the_items_before_it():
    def make():
        yield 1
        raise ValueError("cut 'a' is damaged")

    items = prefetch(make())
    assert next(items) == 1
    with pytest.raises(ValueError, match="cut 'a' is damaged"):
        next(items)


def test_the_prefetch_thread_ends_when_its_generator_is_closed():
    items = prefetch(iter(range(10**9)))
    assert next(items) == 0 and find_threads()
    items.close()
    deadline = time.monotonic() + 10
    while find_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not find_threads()


def test_a_command_that_exits_during_prefetch_is_not_aborted():
    """Python 3.10 ends a daemon thread within C++, and that aborts the process."""
    code = """
import torch
from icefall_kd.core.processes import prefetch
def make():
    while True:
        yield sum(torch.randn(300, 300).mm(torch.randn(300, 300)) for _ in range(9))
items = prefetch(make())
next(items)
raise SystemExit(130)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stderr) == (130, "")


def test_prefetch_of_no_items_yields_nothing():
    assert list(prefetch([])) == []
