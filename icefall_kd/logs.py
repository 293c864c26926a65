"""Logging set-up shared by all commands."""

import contextlib
import logging
import time
from collections.abc import Iterator
from logging.handlers import MemoryHandler
from pathlib import Path

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
def log_file() -> Iterator[LogFile]:
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
