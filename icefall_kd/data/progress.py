"""Progress bars with the time that is left."""

import datetime
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Optional, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    items: Iterable[T], description: str, unit: str, total: Optional[int] = None
) -> Iterator[T]:
    """Iterate ``items`` with a bar on stderr; into a log file only every 10 s.

    Args:
      total: number of items, where they do not tell it.
    """
    interval = 0.5 if sys.stderr.isatty() else 10.0
    bar = tqdm(items, desc=description, unit=unit, mininterval=interval, total=total)
    return iter(bar)


class AudioProgress:
    """Tells how much audio is done, how fast, and how long the rest will take.

    A bar on a terminal; in a log file one line now and then.
    """

    def __init__(self, description: str, interval: float = 60.0) -> None:
        """Begin; nothing is told before the first call.

        Args:
          interval: s between two lines of a log file.
        """
        self._description = description
        self._interval = interval
        self._bar: Optional[tqdm] = None
        self._start = self._told = time.monotonic()

    def __call__(self, done: float, total: float) -> None:
        """Note that ``done`` of ``total`` s of audio are done."""
        if sys.stderr.isatty():
            self._draw(done, total)
        elif time.monotonic() - self._told >= self._interval:
            self._told = time.monotonic()
            logging.info("%s: %s", self._description, self._describe(done, total))

    def close(self) -> None:
        """Leave the line of the bar, if there is one."""
        if self._bar is not None:
            self._bar.close()

    def _draw(self, done: float, total: float) -> None:
        if self._bar is None:
            form = "{desc}: {percentage:3.0f}%|{bar}|{postfix}"
            self._bar = tqdm(
                desc=self._description, total=total, bar_format=form, mininterval=0.5
            )
        self._bar.set_postfix_str(self._describe(done, total), refresh=False)
        self._bar.update(done - self._bar.n)

    def _describe(self, done: float, total: float) -> str:
        """Return for example "1.2 of 960.0 h, 310 h/h, 3:05:32 left"."""
        elapsed = max(time.monotonic() - self._start, 1e-6)
        left = (total - done) * elapsed / done if done else 0.0
        return (
            f"{done / 3600:.1f} of {total / 3600:.1f} h, {done / elapsed:.0f} h/h, "
            f"{datetime.timedelta(seconds=round(left))} left"
        )
