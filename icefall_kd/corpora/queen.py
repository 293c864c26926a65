"""Read the dialogue of Flight of the Amazon Queen: 4.6 hours of English, many actors.

The game is by John Passfield and Steven Stamatiadis, 1995, released as freeware with
attribution.  The data file ``queen.1c`` of its talkie version begins with an index of
members.  A member ``*.SB`` is one segment of a line of dialogue, as MP3 of 11.025 kHz.
The texts are in members ``*.DOG`` (dialogues), ``*.CUT`` (scenes) and ``*.JAS``
(remarks of the hero).  All numbers are big-endian.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from icefall_kd.corpora.audio import AudioClip

DATA_FILE = "queen.1c"
_COUNT_OFFSET = 13  # bytes before the number of members: tag, version, compression
_ENTRY = struct.Struct(">12sBII")  # entry of the index: name, bundle, offset, size
_HEADER = 20  # bytes of a text member before its body
_BYTES_PER_MINUTE = 60 * 2000  # MP3 of 16 kbit/s
_COMMAND = re.compile(r"\*(?:XY.{11}|..)", re.DOTALL)  # separates segments of a line


@dataclass(frozen=True)
class SpokenText:
    """The text of a member ``*.SB``, as in the data file.

    Attributes:
      source: type of the member that has the text: "DOG", "CUT" or "JAS".
      speaker: "joe", the stem of the dialogue's name, or "cut" for a scene, where the
        speaker is unknown.
    """

    text: str
    source: str
    speaker: str


def read_data_file(source_dir: Path) -> dict[str, bytes]:
    """Return the members of the data file below ``source_dir``, name -> bytes.

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
        return read_members(found[0].read_bytes())
    except ValueError as e:
        raise ValueError(f"{found[0]}: {e}") from e


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
    members = read_data_file(source_dir)
    lines = [(name, mp3) for name, mp3 in members.items() if name.endswith(".SB")]
    if max_minutes is not None:
        total = sum(len(mp3) for _, mp3 in lines) / _BYTES_PER_MINUTE
        count = min(len(lines), max(1, round(len(lines) * max_minutes / total)))
        lines = [lines[i * len(lines) // count] for i in range(count)]
    return [
        AudioClip(get_clip_id(name), mp3, "mp3", language="en") for name, mp3 in lines
    ]


def get_clip_id(name: str) -> str:
    """Return the id of a member: "queen-020006J1" for "020006J1.SB"."""
    return f"queen-{name[: -len('.SB')]}"


def read_texts(members: dict[str, bytes]) -> dict[str, SpokenText]:
    """Return the texts of the members ``*.SB``, name -> text.

    A line consists of segments, each with its own audio: segment k has the line's
    prefix and k in hexadecimal digits as its name.  When two texts have one audio, the
    first one counts.  Segments without text or without audio are omitted.
    """
    texts: dict[str, SpokenText] = {}
    for prefix, line, source, speaker in _read_lines(members):
        for k, text in enumerate(_COMMAND.split(line), 1):
            name = f"{prefix}{k:x}".replace(" ", "0").upper() + ".SB"
            if text and name in members:
                texts.setdefault(name, SpokenText(text, source, speaker))
    return texts


def _read_lines(members: dict[str, bytes]) -> Iterator[tuple[str, str, str, str]]:
    """Yield prefix of the audio, text, source and speaker of each line."""
    for name, data in members.items():
        stem, _, kind = name.rpartition(".")
        if kind == "DOG":
            person = stem.rstrip("0123456789").lower()
            for prefix, text in _read_dog(data[_HEADER:]):
                speaker = "joe" if prefix.endswith("J") else person
                yield prefix, text, kind, speaker
        elif kind == "CUT":
            for i, text in enumerate(_read_cut(data[_HEADER:]), 1):
                yield f"{stem:_<5}{i:02d}", text, kind, "cut"
    # QUEEN.JAS has the numbers of lines of the parts of QUEEN2.JAS.
    rooms, names, _, descriptions = struct.unpack_from(
        ">4H", members["QUEEN.JAS"], _HEADER
    )
    lines = members["QUEEN2.JAS"].decode("cp437").split("\r\n")
    for i, text in enumerate(lines[:descriptions], 41):
        yield f"JOE{i:04d}", text, "JAS", "joe"
    start = descriptions + names + rooms + 12
    for i, text in enumerate(lines[start : start + 40], 1):
        yield f"JOE{i:04d}", text, "JAS", "joe"


def _read_dog(body: bytes) -> Iterator[tuple[str, str]]:
    """Yield prefix and text of each line of a dialogue."""
    levels, key, num_hero, num_person = struct.unpack_from(">h2xhhh", body)
    person, last = struct.unpack_from(">22xH2xH", body)
    hero = 32 + 96 * abs(levels)
    for position, count, who in ((hero, num_hero, "J"), (person, num_person, "P")):
        for _ in range(count):
            (id,) = struct.unpack_from(">2xH", body, position)
            text, position = _read_string(body, position + 4, align=4)
            yield f"{key:2d}{id:4x}{who}", text
    if struct.unpack_from(">2xH", body, hero)[0] == 0:
        yield f"{key:2d}SSSSJ", _read_string(body, hero + 4, align=2)[0]
    text, position = _read_string(body, last, align=2)
    yield f"{key:2d}XXXXP", text
    yield f"{key:2d}XXXXJ", _read_string(body, position, align=2)[0]


def _read_cut(body: bytes) -> Iterator[str]:
    """Yield the lines of a scene."""
    count, position = struct.unpack_from(">2xh4xH", body)
    _, position = _read_string(body, position, align=2)  # not spoken
    for _ in range(abs(count)):
        text, position = _read_string(body, position, align=2)
        yield text


def _read_string(body: bytes, position: int, align: int) -> tuple[str, int]:
    """Return a string and the position after it.

    Args:
      align: the end is padded to a multiple of this many bytes, unless the string is
        empty.
    """
    end = position + 1 + body[position]
    text = body[position + 1 : end].decode("cp437")
    return text, end + -end % align if text else end
