"""Work on many items in several processes."""

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
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


def leave_stopping_to_parent(worker: int = 0) -> None:
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
