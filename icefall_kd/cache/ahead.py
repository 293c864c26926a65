"""Makes items in a thread ahead of their use."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_LOOK = 0.1  # s after which a thread that waits looks whether it is still wanted


def ahead(items: Iterable[T], size: int = 1) -> Iterator[T]:
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
    threading.Thread(target=work, name="ahead").start()
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
