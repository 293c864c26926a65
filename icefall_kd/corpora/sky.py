"""Read the dialogue of Beneath a Steel Sky: 1.9 hours of English, many actors.

Revolution Software, 1994, released as freeware.  The index ``sky.dnr`` lists numbered
files, whose bytes are in ``sky.dsk``.  Numbers are little-endian.  A line of dialogue
is a message in one of eight sections: its text is in the text file of the section, its
audio is a file of 8-bit samples, packed by Rob Northen compression.
"""

import io
import struct
import wave
from collections.abc import Mapping
from pathlib import Path

from icefall_kd.corpora.rnc import unpack_rnc

INDEX_FILE, DATA_FILE = "sky.dnr", "sky.dsk"
SAMPLE_RATE = 11025  # Hz
_TEXTS = 60600  # number of the text file of section 0
_SPEECH = [50000 + n for n in (0, 600, 1100, 2430, 3380, 4530, 5080, 5230)]
_RNC_OFFSET = 22  # bytes before the packed data; they are no samples


def read_files(source_dir: Path) -> dict[int, memoryview]:
    """Return the files below ``source_dir``, number -> bytes, packed or not.

    Raises:
      FileNotFoundError: if the index or the data are missing.
      ValueError: if a file exceeds the data.
    """
    paths = []
    for name in (INDEX_FILE, DATA_FILE):
        found = sorted(source_dir.rglob(name))
        if not found:
            raise FileNotFoundError(
                f"{source_dir}: no {name}; unpack the Debian package "
                "beneath-a-steel-sky there"
            )
        paths.append(found[0])
    index, data = (path.read_bytes() for path in paths)
    (count,) = struct.unpack_from("<I", index)
    if len(index) < 4 + 8 * count:
        raise ValueError(f"{paths[0]}: the index of {count} files is truncated")
    files = {}
    for number, low, high in struct.iter_unpack("<HIH", index[4 : 4 + 8 * count]):
        offset, flags = low & 0xFFFFFF, low >> 24 | high << 8
        if offset >> 23:
            offset = (offset & 0x7FFFFF) * 16
        size = flags & 0x3FFFFF
        if offset + size > len(data):
            raise ValueError(f"{paths[1]}: file {number} exceeds it; copy it again")
        files[number] = memoryview(data)[offset : offset + size]
    return files


def read_texts(
    files: Mapping[int, memoryview], codes: Mapping[str, int]
) -> dict[int, str]:
    """Return the texts of the speech files, number of the file -> text.

    Args:
      files: see :func:`read_files`.
      codes: prefix code of the texts, bits ("0010") -> code point.
    """
    texts = {}
    for section, first in enumerate(_SPEECH):
        messages = _read_messages(bytes(files[_TEXTS + section]), codes)
        for number, text in enumerate(messages, first):
            if number in files:
                texts[number] = text
    return texts


def _read_messages(data: bytes, codes: Mapping[str, int]) -> list[str]:
    """Return the messages of a text file.

    The first table has the length of each block of 32 messages, the second one, from
    ``lengths`` to ``start``, that of each message.  Texts begin at byte ``start``.
    Lengths are in units of two bits.
    """
    lengths, start = struct.unpack_from("<2H", data)
    bits = "".join(f"{byte:08b}" for byte in data)
    messages = []
    for m in range(start - lengths):
        units = sum(struct.unpack_from(f"<{m // 32}H", data, 4))
        for byte in data[lengths + m // 32 * 32 : lengths + m]:
            units += byte if byte < 128 else (byte & 127) * 8
        messages.append(_decode_text(bits, 8 * start + 2 * units, codes))
    return messages


def _decode_text(bits: str, position: int, codes: Mapping[str, int]) -> str:
    """Return the text that begins at a bit and ends with character 0."""
    text, code = "", ""
    for bit in bits[position : position + 16 * 1024]:
        code += bit
        if code in codes:
            if codes[code] == 0:
                return text
            text, code = text + chr(codes[code]), ""
    raise ValueError(f"the text at bit {position} has no end; copy the files again")


def unpack_speech(data: memoryview) -> bytes:
    """Return the samples of a speech file, unsigned 8-bit, 11.025 kHz, mono.

    Raises:
      ValueError: if the file is not packed, or a checksum is wrong.
    """
    return unpack_rnc(bytes(data[_RNC_OFFSET:]))


def encode_wav(samples: bytes) -> bytes:
    """Return the bytes of a wav file with unsigned 8-bit samples."""
    with io.BytesIO() as file:
        with wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(1)
            writer.setframerate(SAMPLE_RATE)
            writer.writeframes(samples)
        return file.getvalue()
