"""Read the dialogue of Flight of the Amazon Queen: 4.3 hours of English, many actors.

The game is by John Passfield and Steven Stamatiadis, 1995, released as freeware with
attribution.  The data file ``queen.1c`` of its talkie version begins with an index of
members.  A member ``*.SB`` is one line of dialogue, as MP3 of 11.025 kHz.
"""

import struct
from pathlib import Path
from typing import Optional

from icefall_kd.corpora.audio import AudioClip

DATA_FILE = "queen.1c"
_COUNT_OFFSET = 13  # bytes before the number of members: tag, version, compression
_ENTRY = struct.Struct(">12sBII")  # entry of the index: name, bundle, offset, size
_BYTES_PER_MINUTE = 60 * 2000  # MP3 of 16 kbit/s


def read_members(data: bytes) -> dict[str, bytes]:
    """Return the members of a data file, name -> bytes.

    Args:
      data: content of the file.
    Raises:
      ValueError: if the index is missing or damaged.
    """
    start = _COUNT_OFFSET + 2
    if data[:4] != b"QTBL" or len(data) < start:
        raise ValueError("not a data file of Flight of the Amazon Queen (no QTBL)")
    (count,) = struct.unpack_from(">H", data, _COUNT_OFFSET)
    if len(data) < start + count * _ENTRY.size:
        raise ValueError(f"the index of {count} members is truncated; copy it again")
    members = {}
    for i in range(count):
        name, _, offset, size = _ENTRY.unpack_from(data, start + i * _ENTRY.size)
        text = name.split(b"\0")[0].decode("ascii")
        if offset + size > len(data):
            raise ValueError(f"member {text} exceeds the file; copy the file again")
        members[text] = data[offset : offset + size]
    return members


def read_dialogue(
    source_dir: Path, max_minutes: Optional[float] = None
) -> list[AudioClip]:
    """Return the lines of dialogue, unlabelled, in the order of the data file.

    Args:
      source_dir: folder that contains ``queen.1c`` at any depth.
      max_minutes: minutes of audio to take, about, in evenly spaced lines; None takes
        all lines.
    Raises:
      FileNotFoundError: if there is no ``queen.1c`` below ``source_dir``.
      ValueError: if it is damaged.
    """
    found = sorted(source_dir.rglob(DATA_FILE))
    if not found:
        raise FileNotFoundError(
            f"{source_dir}: no {DATA_FILE}; unpack the Debian package "
            "flight-of-the-amazon-queen (or the talkie version) there"
        )
    try:
        members = read_members(found[0].read_bytes())
    except ValueError as e:
        raise ValueError(f"{found[0]}: {e}") from e
    lines = [(name, mp3) for name, mp3 in members.items() if name.endswith(".SB")]
    if max_minutes is not None:
        total = sum(len(mp3) for _, mp3 in lines) / _BYTES_PER_MINUTE
        count = min(len(lines), max(1, round(len(lines) * max_minutes / total)))
        lines = [lines[i * len(lines) // count] for i in range(count)]
    return [
        AudioClip(f"queen-{name[:-3]}", mp3, "mp3", language="en")
        for name, mp3 in lines
    ]
