"""Work that several processes share."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

from icefall_kd.core.processes import leave_signals_to_parent, parallel_map


def test_ctrl_c_ends_the_processes_without_a_word_of_theirs(capfd, tmp_path):
    """A terminal sends it to all processes of the command."""
    started = [tmp_path / "first", tmp_path / "second"]
    others = set(multiprocessing.active_children())  # of loaders in other tests

    def press():
        while not all(path.exists() for path in started):
            time.sleep(0.05)
        for job in set(multiprocessing.active_children()) - others:
            os.kill(job.pid, signal.SIGINT)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)

    work = "import time; open({!r}, 'w').close(); time.sleep(600)"
    codes = [work.format(str(path)) for path in started]
    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        list(parallel_map(exec, codes, num_jobs=2))
    assert set(multiprocessing.active_children()) <= others
    assert capfd.readouterr().err == ""


def test_a_loader_worker_ends_at_the_second_sigterm_alone():
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
