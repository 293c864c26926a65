"""Items that a thread makes before they are used."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from icefall_kd.core.processes import prefetch


def threads():
    return [t for t in threading.enumerate() if t.name == "prefetch"]


def test_items_come_in_order_and_before_they_are_asked_for():
    made = []

    def make():
        for n in range(20):
            made.append(n)
            yield n

    items = prefetch(make(), size=2)
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made == [0, 1, 2, 3]  # one is used, two wait, one is in the hand
    assert list(items) == list(range(1, 20))


def test_an_error_is_raised_in_its_turn():
    def make():
        yield 1
        raise ValueError("cut 'a' is damaged")

    items = prefetch(make())
    assert next(items) == 1
    with pytest.raises(ValueError, match="cut 'a' is damaged"):
        next(items)


def test_the_thread_ends_when_nobody_takes_its_items_any_more():
    items = prefetch(iter(range(10**9)))
    assert next(items) == 0 and threads()
    items.close()
    deadline = time.monotonic() + 10
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()


def test_a_command_that_ends_early_is_not_aborted():
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


def test_nothing_gives_nothing():
    assert list(prefetch([])) == []
