"""Worker processes and a prefetching thread."""

import contextlib
import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import resource_tracker
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_POLL = 0.1  # s between two checks whether the consumer has stopped


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    num_jobs: int = 1,
    chunk: int = 1,
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order.

    The processes are spawned, because a fork of a process with torch threads may
    deadlock.

    Args:
      function: top-level function of a module, which pickle can name.
      num_jobs: maximum number of processes; 1 runs ``function`` in this process.
      chunk: number of items that a process gets at a time.
    Raises:
      ValueError: if ``num_jobs`` is below 1.
      Exception: any error of ``function``; tasks that have not started are cancelled.
      KeyboardInterrupt: after Ctrl-C; the processes are terminated.
    """
    if num_jobs < 1:
        raise ValueError(f"num_jobs is {num_jobs}, must be at least 1")
    num_jobs = min(num_jobs, -(-len(items) // chunk))
    if num_jobs <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(num_jobs, context, _use_one_thread) as executor:
        try:
            with _blocked_signal(signal.SIGINT):
                results = executor.map(function, items, chunksize=chunk)
            yield from results
        except BaseException as e:
            if isinstance(e, KeyboardInterrupt):
                for job in set(multiprocessing.active_children()) - others:
                    job.terminate()
            executor.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _blocked_signal(number: int) -> Iterator[None]:
    """Block a signal for the processes that the block starts.

    This process receives the signal after the block.
    """
    # The tracker would unblock SIGINT when it starts, so it starts before.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def leave_signals_to_parent(worker: int = 0) -> None:
    """Ignore Ctrl-C and the first SIGTERM in this process.

    Terminals, ``kill 0`` and job schedulers send a signal to all processes of a group.
    If the signal ended a worker, the parent could not stop cleanly.  The parent sends a
    second SIGTERM when it exits; that one ends the worker.

    Args:
      worker: number of a DataLoader worker; unused, for ``worker_init_fn``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(
        signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL)
    )


def prefetch(items: Iterable[Item], size: int = 1) -> Iterator[Item]:
    """Yield ``items`` in order; a thread computes up to ``size`` of them in advance.

    An error of an item is raised after the items before it.  The thread ends after the
    last item, when the consumer stops, or when the main thread ends.
    """
    ready: queue.Queue = queue.Queue(maxsize=size)
    is_stopped, main = threading.Event(), threading.main_thread()

    def put(item: object, is_last: bool = False) -> None:
        while not is_stopped.is_set() and main.is_alive():
            try:
                return ready.put((item, is_last), timeout=_POLL)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item)
                if is_stopped.is_set() or not main.is_alive():
                    return
            put(None, is_last=True)
        except BaseException as e:  # raised again in the consumer's thread
            put(e, is_last=True)

    # Python ends a daemon thread at exit; inside C++ code that aborts the process.
    threading.Thread(target=work, name="prefetch").start()
    try:
        while True:
            item, is_last = ready.get()
            if is_last and item is not None:
                raise item
            if is_last:
                return
            yield item
    finally:
        is_stopped.set()
