"""Work on many items in several processes.

Makes items in a thread ahead of their use.
"""

import contextlib
import multiprocessing
import queue
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import resource_tracker
from typing import Callable, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    num_jobs: int = 1,
    chunk: int = 1,
) -> Iterator[Result]:
    """Yield ``function(item)`` of each item, in their order.

    The processes are spawned, not forked: a fork of a process whose torch has threads
    may wait for them for ever.

    Args:
      function: of a module's top level.
      num_jobs: processes, or fewer where there is not so much to do; 1 works in this
        one.
      chunk: items that a process takes at a time.
    Raises:
      ValueError: if ``num_jobs`` is not positive.
      whatever ``function`` raises; what was not begun then is not done.
      KeyboardInterrupt: after Ctrl-C; the processes are ended within their items.
    """
    if num_jobs < 1:
        raise ValueError(f"num_jobs is {num_jobs}, must be at least 1")
    num_jobs = min(num_jobs, -(-len(items) // chunk))
    if num_jobs <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(num_jobs, context, _one_thread) as pool:
        try:
            with _blocked(signal.SIGINT):
                results = pool.map(function, items, chunksize=chunk)
            yield from results
        except BaseException as e:
            if isinstance(e, KeyboardInterrupt):
                for job in set(multiprocessing.active_children()) - others:
                    job.terminate()
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _blocked(number: int) -> Iterator[None]:
    """Start processes that never get a signal; this one gets it afterwards."""
    resource_tracker.ensure_running()  # it unblocks SIGINT when it starts
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})


def _one_thread() -> None:
    torch.set_num_threads(1)


def leave_signals_to_parent(worker: int = 0) -> None:
    """Let this process ignore Ctrl-C, and the first SIGTERM.

    A terminal, ``kill 0`` and job schedulers send their signal to all processes of a
    group.  A worker that ended by it would take its parent's chance to stop in order.
    The second SIGTERM ends the worker: a parent that ends sends one of its own.

    Args:
      worker: number of a DataLoader's worker, whose ``worker_init_fn`` this may be.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(
        signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL)
    )


T = TypeVar("T")

_LOOK = 0.1  # s after which a thread that waits looks whether it is still wanted


def prefetch(items: Iterable[T], size: int = 1) -> Iterator[T]:
    """Yield ``items`` in their order, up to ``size`` of them made before they are used.

    An error in making one is raised where its turn would have been.  The thread ends
    with the items, or soon after the caller stops taking them, or the command ends.
    """
    made: queue.Queue = queue.Queue(maxsize=size)
    unwanted, main = threading.Event(), threading.main_thread()

    def hand_over(item: object, last: bool = False) -> None:
        while not unwanted.is_set() and main.is_alive():
            try:
                return made.put((item, last), timeout=_LOOK)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                hand_over(item)
                if unwanted.is_set() or not main.is_alive():
                    return
            hand_over(None, last=True)
        except BaseException as e:  # told in the thread that asks for items
            hand_over(e, last=True)

    # No daemon: Python would end it within C++, and that aborts the process.
    threading.Thread(target=work, name="prefetch").start()
    try:
        while True:
            item, last = made.get()
            if last and item is not None:
                raise item
            if last:
                return
            yield item
    finally:
        unwanted.set()
