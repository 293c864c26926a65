"""Work on many items in several processes."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Callable, Iterator, Sequence, TypeVar

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
    """
    if num_jobs < 1:
        raise ValueError(f"num_jobs is {num_jobs}, must be at least 1")
    num_jobs = min(num_jobs, -(-len(items) // chunk))
    if num_jobs <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_jobs, context, _one_thread) as pool:
        try:
            yield from pool.map(function, items, chunksize=chunk)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _one_thread() -> None:
    torch.set_num_threads(1)
