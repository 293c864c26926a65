"""Logging set-up shared by all commands.

Progress bars with the time that is left.
"""

import contextlib
import datetime
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Optional, TypeVar

from tqdm import tqdm

FORMAT = "%(asctime)s %(levelname)s [%(filename)s:%(lineno)d] %(message)s"


def setup_logging(level: int = logging.INFO) -> None:
    """Log to stderr with time, file and line, as icefall's recipes do."""
    logging.basicConfig(level=level, format=FORMAT, force=True)


class LogFile:
    """A copy of the log in a file; lines before :meth:`open` are kept until then."""

    def __init__(self) -> None:
        # Never flushed by itself, for there may be no file yet.
        self._memory = MemoryHandler(10_000, logging.CRITICAL + 1, flushOnClose=False)

    def open(self, folder: Path, name: str, rank: int = 0, size: int = 1) -> None:
        """Begin ``<folder>/<name>-<date>``, of several processes ``...-<rank>``."""
        folder.mkdir(parents=True, exist_ok=True)
        date = time.strftime("%Y-%m-%d-%H-%M-%S")
        suffix = f"-{rank}" if size > 1 else ""
        file = logging.FileHandler(folder / f"{name}-{date}{suffix}", encoding="utf-8")
        file.setFormatter(logging.Formatter(FORMAT))
        file.handleError = self._give_up  # type: ignore[method-assign]
        self._memory.setTarget(file)
        self._memory.flush()
        self._memory.capacity = 1  # from now on at once

    def _give_up(self, record: logging.LogRecord) -> None:
        """Go on without the file, as on a full disk; stderr has the same lines."""
        logging.getLogger().removeHandler(self._memory)
        logging.warning("the log file cannot be written; the log goes on here alone")

    def close(self) -> None:
        """Write what is left, and close the file."""
        if self._memory.target is not None:
            self._memory.flush()
            with contextlib.suppress(OSError):
                self._memory.target.close()
        self._memory.close()


@contextlib.contextmanager
def copy_log_to_file() -> Iterator[LogFile]:
    """Copy the log of the block; an error that ends it is the last line."""
    file = LogFile()
    root = logging.getLogger()
    root.addHandler(file._memory)
    try:
        yield file
    except BaseException as e:
        text = f"ended by {type(e).__name__}: {e}"
        record = logging.LogRecord("root", logging.ERROR, __file__, 0, text, (), None)
        file._memory.handle(record)
        raise
    finally:
        root.removeHandler(file._memory)
        file.close()


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
