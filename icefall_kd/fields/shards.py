"""Read the cuts of one shard of a Shar set, from any position or single ones.

lhotse's reader reads every byte of a shard up to the wanted cut, and silently ends a
shard at a truncated file.  This reader seeks past unwanted data, and its errors name
the damaged file.  The frames of a field stay in the file until a batch needs them.
"""

import contextlib
import io
import json
import tarfile
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Optional

from lhotse.array import TemporalArray
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item
from lhotse.shar.utils import fill_shar_placeholder

from icefall_kd.core.files import is_local, open_text
from icefall_kd.fields.frames import point_to_file

REMEDY = "copy it again, or write it again with icefall_kd.bin.make_shar or bin.extract"

_BLOCK = 512
_HEAD = 128  # bytes of the header of a .npy
# Holds a JSON description, its tar header and the start of the next member.
_BUFFER = 4 * _BLOCK


@dataclass(frozen=True)
class Shard:
    """Files of one shard.

    Attributes:
      cuts: manifest of the cuts, JSON lines, compressed or not.
      tars: "recording" and fields -> tar with their data, in the order of the cuts.
      stored_as: field -> {cut id: id in the tar, or None for a cut without data}, for
        fields whose tar does not have exactly these cuts; see
        :func:`icefall_kd.fields.join.match_keys`.
    """

    cuts: Path
    tars: Mapping[str, Path]
    stored_as: Mapping[str, Mapping[str, Optional[str]]] = field(default_factory=dict)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield every cut as JSON, without data.

        Raises:
          ValueError: if the manifest is damaged; the message names file and line.
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
        """Yield (index in the shard, cut with its data).

        The audio is in memory; the frames of fields stay in local files.  Arguments and
        errors are those of :meth:`find`.
        """
        for index, stored in self.find(start, wanted, labelled):
            yield index, stored.load()

    def find(
        self,
        start: int = 0,
        wanted: Optional[Container[int]] = None,
        labelled: bool = False,
    ) -> Iterator[tuple[int, "StoredCut"]]:
        """Yield (index in the shard, cut whose data are not read yet).

        Reads only the headers of local tars.  If a tar is at a URL, reads and keeps the
        data too, since a second request would take longer.

        Args:
          start: index of the first cut.
          wanted: indices of the cuts to yield; None for all from ``start`` on.
          labelled: skip cuts without a supervision.
        Raises:
          ValueError: if a file is damaged, or a tar has the data of other cuts; the
            message names the file and the cut.
        """
        entries = {name: _read_entries(tar) for name, tar in self.tars.items()}
        local = all(is_local(tar) for tar in self.tars.values())
        for index, line in enumerate(self.lines()):
            found = {
                name: self._next_entry(name, of_field, line["id"])
                for name, of_field in entries.items()
            }
            if index < start or (wanted is not None and index not in wanted):
                continue
            if labelled and not line.get("supervisions"):
                continue
            stored = StoredCut(line, found)
            if not local:
                stored.keep()
            yield index, stored

    def _next_entry(
        self, name: str, entries: Iterator["_Entry"], cut_id: str
    ) -> Optional["_Entry"]:
        """Return the cut's entry, the next one of the tar; None if it has no data."""
        exceptions = self.stored_as.get(name)
        stored_id = cut_id if exceptions is None else exceptions.get(cut_id, cut_id)
        if stored_id is None:
            return None
        entry = next(entries, None)
        # Entries without a cut are skipped, but only where they are expected.
        while exceptions is not None and entry is not None and entry.key != stored_id:
            entry = next(entries, None)
        if entry is None or entry.key != stored_id:
            raise ValueError(
                f"{self.tars[name]}: has {f'cut {entry.key!r}' if entry else 'no more'}"
                f" where {self.cuts.name} has cut '{cut_id}': the tar is truncated, or "
                f"has other cuts; {REMEDY}"
            )
        return entry


class StoredCut:
    """A cut whose data are in the tars of a shard.

    Attributes:
      id: id of the cut.
      duration: duration of the cut in seconds.
    """

    def __init__(
        self, line: dict[str, Any], entries: Mapping[str, Optional["_Entry"]]
    ) -> None:
        """Store the parts, without reading any data.

        Args:
          line: cut as JSON.
          entries: field -> entry with its data, None for a cut without data.
        """
        self.id: str = line["id"]
        self.duration: float = line["duration"]
        self._line, self._entries = line, entries
        self._cut: Optional[Cut] = None

    def keep(self) -> None:
        """Read the data and keep them in memory; raises as :meth:`load`."""
        self._cut = self.load()

    def load(self) -> Cut:
        """Return the cut with its data.

        Raises:
          ValueError: if a file is damaged; the message names it and the cut.
        """
        if self._cut is not None:
            return self._cut
        line = json.loads(json.dumps(self._line))  # deserialising consumes it
        cut = deserialize_item(line)
        for name, entry in self._entries.items():
            manifest = entry.read() if entry is not None else None
            if manifest is not None:
                setattr(cut, name, manifest)
        return cut


@dataclass(frozen=True)
class ShardCuts:
    """The cuts of several shards in order, as the data of a lazy CutSet."""

    shards: Sequence[Shard]

    def __iter__(self) -> Iterator[Cut]:
        return (cut for shard in self.shards for _, cut in shard.read())


def read_ids(tar: Path) -> list[str]:
    """Return the ids of the cuts with data in a tar, up to the first damaged entry."""
    ids = []
    with contextlib.suppress(ValueError):
        ids.extend(entry.key for entry in _read_entries(tar) if not entry.is_empty)
    return ids


class Member(NamedTuple):
    """A file in a tar.

    Attributes:
      name: name of the file.
      offset, size: position and size of its data in the tar, in bytes.
      head: first 128 bytes of its data.
    """

    name: str
    offset: int
    size: int
    head: bytes


class _Entry:
    """Data of one cut in a tar, followed by their description."""

    def __init__(self, path: Path, f: BinaryIO, data: Member, meta: Member) -> None:
        self.path, self._file, self._data, self._meta = path, f, data, meta
        self.key = data.name.rpartition(".")[0]

    @property
    def is_empty(self) -> bool:
        """True if lhotse wrote a placeholder for a cut without data."""
        return self._meta.name.endswith(".nometa")

    def read(self) -> Any:
        """Return lhotse's manifest of the data, None without data.

        Audio is read into memory; frames in a local file stay there.
        """
        if self.is_empty:
            return None
        try:
            with self._open() as f:
                line = json.loads(_read_member(f, self._meta))
                if "array" in line:
                    manifest = TemporalArray.from_dict(line)
                    if self._point_to_file(manifest):
                        return manifest
                else:
                    manifest = deserialize_item(line)
                data = _read_member(f, self._data)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as e:
            raise ValueError(
                f"{self.path}: cut '{self.key}' is damaged: {e}; {REMEDY}"
            ) from e
        fill_shar_placeholder(manifest, data, self._data.name)
        return manifest

    def _open(self) -> contextlib.AbstractContextManager[BinaryIO]:
        """Return the open tar; open it again if the iteration over it has ended."""
        if self._file.closed:
            return _open_seekable(self.path)
        return contextlib.nullcontext(self._file)

    def _point_to_file(self, manifest: TemporalArray) -> bool:
        _, offset, size, head = self._data
        return is_local(self.path) and point_to_file(
            manifest.array, str(self.path), offset, size, head
        )


def _read_entries(path: Path) -> Iterator[_Entry]:
    try:
        with _open_seekable(path) as f:
            members = read_members(f)
            for data in members:
                meta = next(members, None)
                if meta is None:
                    return
                yield _Entry(path, f, data, meta)
    except (tarfile.TarError, EOFError) as e:
        raise ValueError(f"{path}: damaged ({e}); {REMEDY}") from e


def _read_member(f: BinaryIO, member: Member) -> bytes:
    f.seek(member.offset)
    data = f.read(member.size)
    if len(data) < member.size:  # it was complete when its header was read
        raise EOFError("the file was truncated")
    return data


@contextlib.contextmanager
def _open_seekable(path: Path) -> Iterator[BinaryIO]:
    """Open a file; read it into memory first if its store can only stream it."""
    if is_local(path):
        with path.open("rb", buffering=_BUFFER) as f:
            yield f
        return
    with path.open("rb") as f:
        yield f if f.seekable() else io.BytesIO(f.read())


def read_members(f: BinaryIO) -> Iterator[Member]:
    """Yield the files of an uncompressed tar in order; seek past their data.

    Takes a tenth of the time of tarfile, which needs 24 us for each of a cut's two
    members (AMD EPYC), more than all other work of the loader on a field.  The caller
    may read elsewhere in ``f`` between two members.

    Raises:
      tarfile.TarError: if a header is damaged or data are truncated.
    """
    position, end = 0, f.seek(0, io.SEEK_END)
    while True:
        f.seek(position)
        block = f.read(_BLOCK + _HEAD)
        if not block[:_BLOCK].strip(b"\0"):
            return
        member = _parse_plain_header(block, position) or _read_header(f, position)
        if member.offset + member.size > end:
            raise tarfile.ReadError("unexpected end of data")
        yield member
        position = member.offset + -(-member.size // _BLOCK) * _BLOCK


def _parse_plain_header(block: bytes, position: int) -> Optional[Member]:
    """Return the member of a plain, intact header; None if tarfile must read it.

    Source: POSIX.1-1988 (ustar).
    """
    if len(block) < _BLOCK or block[156:157] not in b"0\0" or block[345]:
        return None  # not a plain file, or a name with a prefix
    try:
        size, checksum = int(block[124:136].rstrip(b" \0"), 8), int(block[148:154], 8)
    except ValueError:
        return None
    # The checksum is the sum of all bytes, with spaces for the 8 bytes of the checksum.
    # The lower half of Adler-32 is 1 plus the sum, modulo 65521, in one fast call.
    total = zlib.adler32(block[156:_BLOCK], zlib.adler32(block[:148])) & 0xFFFF
    if (total - 1 + 8 * ord(" ") - checksum) % 65521:
        return None
    name = block[:100].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    return Member(name, position + _BLOCK, size, block[_BLOCK : _BLOCK + size])


def _read_header(f: BinaryIO, position: int) -> Member:
    """Read any header with tarfile, for example one with a long name."""
    f.seek(position)
    info = tarfile.TarFile(fileobj=f).firstmember
    if info is None:
        raise tarfile.ReadError(f"no header of a member at byte {position}")
    f.seek(info.offset_data)
    head = f.read(min(info.size, _HEAD))
    return Member(info.name, info.offset_data, info.size, head)
