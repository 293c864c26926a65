"""Reads one shard of a Shar set from any cut on, or single cuts of it.

lhotse's own reader goes through every byte of every shard before the place that is
wanted, and ends a shard quietly where one of its files ends too soon.  Here what is not
wanted is passed over without being read, and a damaged file is told by name.  The
frames of a field stay where they are until a batch is made of their cut.
"""

import contextlib
import io
import json
import tarfile
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Optional

from lhotse.array import TemporalArray
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item
from lhotse.shar.utils import fill_shar_placeholder

from icefall_kd.core.files import is_local, open_text
from icefall_kd.fields.frames import BUFFER, Member, members, place_in_file

REMEDY = "copy it again, or make it again with icefall_kd.bin.make_shar or bin.extract"


@dataclass(frozen=True)
class Shard:
    """Files of one shard.

    Attributes:
      cuts: JSON lines, compressed or not.
      tars: field -> tar of its data, in the order of the cuts; "recording" is one.
      stored_as: field that does not hold just the data of these cuts under their ids
        -> the cuts that are exceptions, see :func:`icefall_kd.fields.join.join_keys`.
    """

    cuts: Path
    tars: Mapping[str, Path]
    stored_as: Mapping[str, Mapping[str, Optional[str]]] = field(default_factory=dict)

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
        self,
        start: int = 0,
        wanted: Optional[Container[int]] = None,
        labelled: bool = False,
    ) -> Iterator[tuple[int, Cut]]:
        """Yield (place in the shard, cut with its data).

        Audio is in memory; frames of a local file are named by their place in it.
        Arguments and errors are those of :meth:`find`.
        """
        for place, stored in self.find(start, wanted, labelled):
            yield place, stored.load()

    def find(
        self,
        start: int = 0,
        wanted: Optional[Container[int]] = None,
        labelled: bool = False,
    ) -> Iterator[tuple[int, "StoredCut"]]:
        """Yield (place in the shard, cut whose data are not read yet).

        Of local tars the headers alone are read.  Behind a URL the data are read and
        kept: to go back for those of each cut would take longer.

        Args:
          start: place of the first one that is wanted.
          wanted: places; None is all from ``start`` on.
          labelled: pass over cuts without a supervision.
        Raises:
          ValueError: if a file is damaged, or a tar does not hold the data of these
            cuts; the message names the file and the cut.
        """
        pairs = {name: _pairs(tar) for name, tar in self.tars.items()}
        local = all(is_local(tar) for tar in self.tars.values())
        for place, line in enumerate(self.lines()):
            found = {
                name: self._find(name, of_field, line["id"])
                for name, of_field in pairs.items()
            }
            if place < start or (wanted is not None and place not in wanted):
                continue
            if labelled and not line.get("supervisions"):
                continue
            stored = StoredCut(line, found)
            if not local:
                stored.keep()
            yield place, stored

    def _find(
        self, name: str, pairs: Iterator["_Pair"], cut_id: str
    ) -> Optional["_Pair"]:
        """Return what is stored of a cut, the next in turn; None where it has none."""
        exceptions = self.stored_as.get(name)
        stored_id = cut_id if exceptions is None else exceptions.get(cut_id, cut_id)
        if stored_id is None:
            return None
        pair = next(pairs, None)
        # What belongs to no cut is passed over, but only where that is expected.
        while exceptions is not None and pair is not None and pair.key != stored_id:
            pair = next(pairs, None)
        if pair is None or pair.key != stored_id:
            raise ValueError(
                f"{self.tars[name]}: holds {pair.key if pair else 'no more'} where "
                f"{self.cuts.name} has cut '{cut_id}': it is cut short or of other "
                f"cuts; {REMEDY}"
            )
        return pair


class StoredCut:
    """A cut whose data are in the tars of a shard.

    Attributes:
      duration: in s.
    """

    def __init__(
        self, line: dict[str, Any], pairs: Mapping[str, Optional["_Pair"]]
    ) -> None:
        """Describe a cut; nothing is read.

        Args:
          line:  the cut as JSON.
          pairs: field -> its data; None where there are none.
        """
        self.id: str = line["id"]
        self.duration: float = line["duration"]
        self._line, self._pairs = line, pairs
        self._cut: Optional[Cut] = None

    def keep(self) -> None:
        """Read the data, and keep them in memory; else as :meth:`load`."""
        self._cut = self.load()

    def load(self) -> Cut:
        """Return the cut with its data.

        Raises:
          ValueError: if a file is damaged; the message names it and the cut.
        """
        if self._cut is not None:
            return self._cut
        line = json.loads(json.dumps(self._line))  # deserialising takes it apart
        cut = deserialize_item(line)
        for name, pair in self._pairs.items():
            manifest = pair.read() if pair is not None else None
            if manifest is not None:
                setattr(cut, name, manifest)
        return cut


@dataclass(frozen=True)
class ShardCuts:
    """The cuts of several shards, one shard after the other; fit for a CutSet."""

    shards: Sequence[Shard]

    def __iter__(self) -> Iterator[Cut]:
        return (cut for shard in self.shards for _, cut in shard.read())


class _Pair:
    """What a tar holds of one cut: its data and, behind that, their description."""

    def __init__(self, path: Path, f: BinaryIO, data: Member, meta: Member) -> None:
        self.path, self._file, self._data, self._meta = path, f, data, meta
        self.key = data.name.rpartition(".")[0]

    @property
    def empty(self) -> bool:
        """True where lhotse wrote that a cut has no data."""
        return self._meta.name.endswith(".nometa")

    def read(self) -> Any:
        """Return lhotse's manifest of the data, None where there are none.

        It has audio in it, but of frames in a local file it names the place.
        """
        if self.empty:
            return None
        try:
            with self._opened() as f:
                line = json.loads(_bytes(f, self._meta))
                if "array" in line:
                    manifest = TemporalArray.from_dict(line)
                    if self._is_named_by_place(manifest):
                        return manifest
                else:
                    manifest = deserialize_item(line)
                data = _bytes(f, self._data)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as e:
            raise ValueError(
                f"{self.path}: cut '{self.key}' is damaged: {e}; {REMEDY}"
            ) from e
        fill_shar_placeholder(manifest, data, self._data.name)
        return manifest

    def _opened(self) -> contextlib.AbstractContextManager[BinaryIO]:
        """Return the tar: as it is while it is gone through, else opened again."""
        if self._file.closed:
            return _seekable(self.path)
        return contextlib.nullcontext(self._file)

    def _is_named_by_place(self, manifest: TemporalArray) -> bool:
        _, offset, size, head = self._data
        return is_local(self.path) and place_in_file(
            manifest.array, str(self.path), offset, size, head
        )


def _bytes(f: BinaryIO, member: Member) -> bytes:
    f.seek(member.offset)
    data = f.read(member.size)
    if len(data) < member.size:  # it was whole when its header was read
        raise EOFError("the file was cut short")
    return data


def stored_ids(path: Path) -> list[str]:
    """Return the ids that a tar holds data of, as far as it can be read."""
    ids = []
    with contextlib.suppress(ValueError):
        for pair in _pairs(path):
            if not pair.empty:
                ids.append(pair.key)
    return ids


def _pairs(path: Path) -> Iterator[_Pair]:
    try:
        with _seekable(path) as f:
            found = members(f)
            for data in found:
                meta = next(found, None)
                if meta is None:
                    return
                yield _Pair(path, f, data, meta)
    except (tarfile.TarError, EOFError) as e:
        raise ValueError(f"{path}: damaged ({e}); {REMEDY}") from e


@contextlib.contextmanager
def _seekable(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read; in memory where its store gives it in one piece alone."""
    if is_local(path):
        with path.open("rb", buffering=BUFFER) as f:
            yield f
        return
    with path.open("rb") as f:
        yield f if f.seekable() else io.BytesIO(f.read())
