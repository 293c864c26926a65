"""Logging and progress bars of the commands."""

import contextlib
import datetime
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, Optional, TypeVar

from tqdm import tqdm

FORMAT = "%(asctime)s %(levelname)s [%(filename)s:%(lineno)d] %(message)s"


def setup_logging(level: int = logging.INFO) -> None:
    """Log to stderr with time, file and line, as icefall's recipes do."""
    logging.basicConfig(level=level, format=FORMAT, force=True)


class LogFile:
    """Copy the log of a ``with`` block to a file.

    Records before :meth:`open` are buffered.  If an error ends the block, the last line
    of the file reports it.
    """

    def __init__(self) -> None:
        # No record has this level, so no record flushes the buffer before `open`.
        self._buffer = MemoryHandler(10_000, logging.CRITICAL + 1, flushOnClose=False)

    def open(self, folder: Path, name: str, rank: int = 0, size: int = 1) -> None:
        """Open ``<folder>/<name>-<date>``, with ``-<rank>`` if ``size`` > 1."""
        folder.mkdir(parents=True, exist_ok=True)
        date = time.strftime("%Y-%m-%d-%H-%M-%S")
        suffix = f"-{rank}" if size > 1 else ""
        file = logging.FileHandler(folder / f"{name}-{date}{suffix}", encoding="utf-8")
        file.setFormatter(logging.Formatter(FORMAT))
        file.handleError = self._stop  # type: ignore[method-assign]
        self._buffer.setTarget(file)
        self._buffer.flush()
        self._buffer.capacity = 1  # write each record at once

    def _stop(self, record: logging.LogRecord) -> None:
        """Stop writing the file, for example on a full disk."""
        logging.getLogger().removeHandler(self._buffer)
        name = getattr(self._buffer.target, "baseFilename", "the log file")
        logging.warning("%s: cannot be written; the log continues on stderr", name)

    def __enter__(self) -> "LogFile":
        logging.getLogger().addHandler(self._buffer)
        return self

    def __exit__(self, kind: Any, error: Optional[BaseException], trace: Any) -> None:
        if error is not None:
            text = f"ended by {type(error).__name__}: {error}"
            record = logging.LogRecord(
                "root", logging.ERROR, __file__, 0, text, (), None
            )
            self._buffer.handle(record)
        logging.getLogger().removeHandler(self._buffer)
        if self._buffer.target is not None:
            self._buffer.flush()
            with contextlib.suppress(OSError):
                self._buffer.target.close()
        self._buffer.close()


T = TypeVar("T")


def progress(
    items: Iterable[T], description: str, unit: str, total: Optional[int] = None
) -> Iterator[T]:
    """Iterate over ``items`` with a progress bar on stderr.

    A terminal shows it every 0.5 s, a file every 10 s.

    Args:
      description: text before the bar.
      unit: noun for an item.
      total: number of items, if ``items`` has no length.
    """
    interval = 0.5 if sys.stderr.isatty() else 10.0
    bar = tqdm(items, desc=description, unit=unit, mininterval=interval, total=total)
    return iter(bar)


class AudioProgress:
    """Show the processed hours of audio, the speed and the remaining time.

    On a terminal it draws a bar, elsewhere it logs lines.

    Args:
      description: text before the numbers.
      interval: seconds between two log lines.
    """

    def __init__(self, description: str, interval: float = 60.0) -> None:
        self._description = description
        self._interval = interval
        self._bar: Optional[tqdm] = None
        self._start = self._last_line = time.monotonic()

    def __call__(self, done: float, total: float) -> None:
        """Show that ``done`` of ``total`` seconds of audio are processed."""
        if sys.stderr.isatty():
            self._draw(done, total)
        elif time.monotonic() - self._last_line >= self._interval:
            self._last_line = time.monotonic()
            logging.info("%s: %s", self._description, self._describe(done, total))

    def close(self) -> None:
        """Close the bar, if it was drawn."""
        if self._bar is not None:
            self._bar.close()

    def _draw(self, done: float, total: float) -> None:
        if self._bar is None:
            bar_format = "{desc}: {percentage:3.0f}%|{bar}|{postfix}"
            self._bar = tqdm(
                desc=self._description,
                total=total,
                bar_format=bar_format,
                mininterval=0.5,
            )
        self._bar.set_postfix_str(self._describe(done, total), refresh=False)
        self._bar.update(done - self._bar.n)

    def _describe(self, done: float, total: float) -> str:
        """Return, for example, "1.2 of 960.0 h, 310 h/h, 3:05:32 left"."""
        elapsed = max(time.monotonic() - self._start, 1e-6)
        left = (total - done) * elapsed / done if done else 0.0
        return (
            f"{done / 3600:.1f} of {total / 3600:.1f} h, {done / elapsed:.0f} h/h, "
            f"{datetime.timedelta(seconds=round(left))} left"
        )
