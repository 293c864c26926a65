"""Finds the members of a tar, at a tenth of the price of tarfile.

A cut has two members in every tar, so tarfile's 24 us for each would be most of what
a teacher's field costs the loader of training (AMD EPYC).
"""

import io
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, Optional

_BLOCK = 512
_HEAD = 128  # bytes, a .npy's header
# Fits a description, its header and the head of the member behind it.
BUFFER = 4 * _BLOCK


class Member(NamedTuple):
    """A file in a tar.

    Attributes:
      offset: of its data in the tar.
      size: of its data.
      head: its first bytes.
    """

    name: str
    offset: int
    size: int
    head: bytes


def members(f: BinaryIO) -> Iterator[Member]:
    """Yield the files of an uncompressed tar in order; data are passed over.

    In between, the caller may read elsewhere in ``f``.

    Raises:
      tarfile.TarError: if a header is damaged or data are cut short.
    """
    place, end = 0, f.seek(0, io.SEEK_END)
    while True:
        f.seek(place)
        block = f.read(_BLOCK + _HEAD)
        if not block[:_BLOCK].strip(b"\0"):
            return
        member = _plain(block, place) or _any(f, place)
        if member.offset + member.size > end:
            raise tarfile.ReadError("unexpected end of data")
        yield member
        place = member.offset + -(-member.size // _BLOCK) * _BLOCK


def _plain(block: bytes, place: int) -> Optional[Member]:
    """Return the file behind a header that is one block and whole, None if it is not.

    The layout is that of POSIX.1-1988 (ustar).
    """
    if len(block) < _BLOCK or block[156:157] not in b"0\0" or block[345]:
        return None  # not a plain file, or its name goes on
    try:
        size, told = int(block[124:136].rstrip(b" \0"), 8), int(block[148:154], 8)
    except ValueError:
        return None
    # The checksum is the sum of the bytes, its own being spaces; the lower half of
    # Adler-32 is 1 and the sum, modulo 65521, and made by one call.
    found = zlib.adler32(block[156:_BLOCK], zlib.adler32(block[:148])) & 0xFFFF
    if (found - 1 + 8 * ord(" ") - told) % 65521:
        return None
    name = block[:100].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    return Member(name, place + _BLOCK, size, block[_BLOCK : _BLOCK + size])


def _any(f: BinaryIO, place: int) -> Member:
    """Let tarfile read a header: one of a long name, say, or a damaged one."""
    f.seek(place)
    info = tarfile.TarFile(fileobj=f).firstmember
    if info is None:
        raise tarfile.ReadError(f"no header of a member at byte {place}")
    f.seek(info.offset_data)
    head = f.read(min(info.size, _HEAD))
    return Member(info.name, info.offset_data, info.size, head)
