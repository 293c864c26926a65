"""Reads one shard of a Shar set from any cut on, or single cuts of it.

lhotse's own reader goes through every byte of every shard before the place that is
wanted, and ends a shard quietly where one of its files ends too soon.  Here what is not
wanted is passed over without being read, and a damaged file is told by name.
"""

import contextlib
import io
import json
import tarfile
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Optional

from lhotse.cut import Cut
from lhotse.serialization import deserialize_item
from lhotse.shar.utils import fill_shar_placeholder

from icefall_kd.io import open_text

REMEDY = "copy it again, or make it again with icefall_kd.bin.make_shar or bin.extract"


@dataclass(frozen=True)
class Shard:
    """Files of one shard.

    Attributes:
      cuts: JSON lines, compressed or not.
      tars: field -> tar of its data, in the order of the cuts; "recording" is one.
    """

    cuts: Path
    tars: Mapping[str, Path]

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield every cut as plain JSON, without data.

        Raises:
          ValueError: if the file is damaged; the message names it and the line.
        """
        number = 0
        try:
            with open_text(self.cuts) as f:
                for line in f:
                    number += 1
                    yield json.loads(line)
        except FileNotFoundError:
            raise
        except (OSError, EOFError, zlib.error, ValueError) as e:
            raise ValueError(
                f"{self.cuts}: damaged at line {number}: {e}; {REMEDY}"
            ) from e

    def read(
        self, start: int = 0, wanted: Optional[Container[int]] = None
    ) -> Iterator[tuple[int, Cut]]:
        """Yield (place in the shard, cut with its data in memory).

        Args:
          start: place of the first one that is wanted.
          wanted: places; None is all from ``start`` on.
        Raises:
          ValueError: if a file is damaged, or a tar does not hold the data of these
            cuts; the message names the file and the cut.
        """
        names = list(self.tars)
        members = [_members(self.tars[name]) for name in names]
        for place, line in enumerate(self.lines()):
            found = [next(m, None) for m in members]
            for name, pair in zip(names, found):
                if pair is None or pair.key != line["id"]:
                    raise ValueError(
                        f"{self.tars[name]}: holds {pair.key if pair else 'no more'} "
                        f"where {self.cuts.name} has cut '{line['id']}': it is cut "
                        f"short or of other cuts; {REMEDY}"
                    )
            if place < start or (wanted is not None and place not in wanted):
                continue
            cut = deserialize_item(line)
            for name, pair in zip(names, found):
                manifest = pair.read()
                if manifest is not None:
                    setattr(cut, name, manifest)
            yield place, cut


@dataclass(frozen=True)
class ShardCuts:
    """The cuts of several shards, one shard after the other; fit for a CutSet."""

    shards: Sequence[Shard]

    def __iter__(self) -> Iterator[Cut]:
        return (cut for shard in self.shards for _, cut in shard.read())


class _Pair:
    """What a tar holds of one cut: its data and, behind that, their description."""

    def __init__(
        self, tar: tarfile.TarFile, data: tarfile.TarInfo, meta: tarfile.TarInfo
    ) -> None:
        self._tar, self._data, self._meta = tar, data, meta
        self.key = str(Path(data.name).with_suffix(""))

    def read(self) -> Any:
        """Return lhotse's manifest with the data in it, None where there are none."""
        if self._meta.name.endswith(".nometa"):
            return None
        try:
            data = self._tar.extractfile(self._data).read()
            text = self._tar.extractfile(self._meta).read()
            manifest = deserialize_item(json.loads(text))
        except (tarfile.TarError, OSError, ValueError, KeyError) as e:
            raise ValueError(
                f"{self._tar.name}: cut '{self.key}' is damaged: {e}; {REMEDY}"
            ) from e
        fill_shar_placeholder(manifest, data, self._data.name)
        return manifest


def _members(path: Path) -> Iterator[_Pair]:
    try:
        with _seekable(path) as f, tarfile.open(str(path), "r:", fileobj=f) as tar:
            while True:
                data, meta = tar.next(), tar.next()
                if data is None or meta is None:
                    return
                yield _Pair(tar, data, meta)
                tar.members = []  # tarfile would keep them all
    except (tarfile.TarError, EOFError) as e:
        raise ValueError(f"{path}: damaged ({e}); {REMEDY}") from e


@contextlib.contextmanager
def _seekable(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read; in memory where its store gives it in one piece alone."""
    with path.open("rb") as f:
        yield f if f.seekable() else io.BytesIO(f.read())
