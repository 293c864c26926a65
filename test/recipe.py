"""The recipe's folder, which the tests fill once and then share."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[1] / "egs/asterisk/KD"


@contextlib.contextmanager
def filling() -> Iterator[Path]:
    """Yield the folder, to one of the processes that run the tests at a time."""
    lock = RECIPE / "data/.tests.lock"
    lock.parent.mkdir(exist_ok=True)
    with open(lock, "w", encoding="utf-8") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield RECIPE
