"""Progress bars with the time that is left."""

import sys
from typing import Iterable, Iterator, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], description: str, unit: str) -> Iterator[T]:
    """Iterate ``items`` with a bar on stderr; into a log file only every 10 s."""
    interval = 0.5 if sys.stderr.isatty() else 10.0
    return iter(tqdm(items, desc=description, unit=unit, mininterval=interval))
