"""Flight of the Amazon Queen: 4.3 hours of English dialogue, many actors, no text.

John Passfield and Steven Stamatiadis, 1995, released as freeware with attribution.
The talkie's one data file ``queen.1c`` opens with an index of its members; those
named ``*.SB`` are MP3 streams of 11.025 kHz, one line of dialogue each.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from lhotse import CutSet

from icefall_kd.corpora.audio import Clip, store_clips

DATA_FILE = "queen.1c"
_COUNT_AT = 13  # after the tag, the version and the kind of compression
_ENTRY = struct.Struct(">12sBII")  # name, bundle, offset, size


@dataclass(frozen=True)
class Member:
    """One file inside the data file: where its bytes lie."""

    name: str
    offset: int
    size: int


def read_index(data: bytes) -> list[Member]:
    """Return the members of the data file.

    Raises:
      ValueError: if ``data`` has no such index, or a member lies outside of it.
    """
    if data[:4] != b"QTBL" or len(data) < _COUNT_AT + 2:
        raise ValueError("not a data file of Flight of the Amazon Queen (no QTBL)")
    (count,) = struct.unpack_from(">H", data, _COUNT_AT)
    start = _COUNT_AT + 2
    if len(data) < start + count * _ENTRY.size:
        raise ValueError(f"its index of {count} members is cut off")
    members = []
    for i in range(count):
        name, _, offset, size = _ENTRY.unpack_from(data, start + i * _ENTRY.size)
        text = name.split(b"\0")[0].decode("ascii")
        if offset + size > len(data):
            raise ValueError(f"member {text} lies outside of the file")
        members.append(Member(text, offset, size))
    return members


def prepare_queen(
    source_dir: Path,
    audio_dir: Path,
    *,
    max_minutes: Optional[float] = None,
) -> CutSet:
    """Return the lines of dialogue as cuts without text, in the order of the file.

    Args:
      max_minutes: stop after this much audio, taken evenly from the whole game so
        that every actor is heard; None takes all.
    Raises:
      FileNotFoundError: if there is no ``queen.1c`` below ``source_dir``.
    """
    found = sorted(Path(source_dir).rglob(DATA_FILE))
    if not found:
        raise FileNotFoundError(
            f"{source_dir}: no {DATA_FILE}. Remedy: unpack the Debian package "
            "flight-of-the-amazon-queen (or the talkie version) there"
        )
    data = found[0].read_bytes()
    try:
        members = [m for m in read_index(data) if m.name.endswith(".SB")]
    except ValueError as e:
        raise ValueError(f"{found[0]}: {e}") from e
    if max_minutes is not None:
        members = _evenly(members, max_minutes)
    clips = [
        Clip(
            f"queen-{m.name[:-3]}",
            data[m.offset : m.offset + m.size],
            "mp3",
            language="en",
        )
        for m in members
    ]
    cuts, _ = store_clips(clips, Path(audio_dir), "amazon queen: audio to flac")
    return CutSet.from_cuts(cuts)


def _evenly(members: list[Member], minutes: float) -> list[Member]:
    """Every k-th member, so that together they last about ``minutes``."""
    bytes_per_second = 2000  # MP3 of 16 kbit/s
    total = sum(m.size for m in members) / bytes_per_second / 60
    count = min(len(members), max(1, round(len(members) * minutes / total)))
    return [members[i * len(members) // count] for i in range(count)]
