"""Unpack Rob Northen compression, method 1, as games of the 1990s use it."""

import struct
from functools import lru_cache

import numpy as np

_HEADER = struct.Struct(">4sIIHHBB")
_MAGIC = b"RNC\1"
_Table = list[tuple[int, int]]  # next bits, lowest first -> value, bits of its code
_LONG = 16  # bits of a code that does not exist: longer than any code


def unpack_rnc(packed: bytes) -> bytes:
    """Return the unpacked bytes.

    Args:
      packed: begins with ``RNC\\1``; bytes after the packed data are ignored.
    Raises:
      ValueError: if the header, a checksum or the size is wrong.
    """
    if packed[:4] != _MAGIC or len(packed) < _HEADER.size:
        raise ValueError("no header of Rob Northen compression, method 1")
    _, size, packed_size, crc, packed_crc, _, num_blocks = _HEADER.unpack_from(packed)
    body = packed[_HEADER.size : _HEADER.size + packed_size]
    if len(body) < packed_size or crc16(body) != packed_crc:
        raise ValueError("the packed data are damaged (CRC)")
    unpacked = _Unpacker(body).unpack(num_blocks)
    if len(unpacked) != size or crc16(unpacked) != crc:
        raise ValueError("the unpacked data are damaged (CRC)")
    return unpacked


def read_unpacked_size(packed: bytes) -> int:
    """Return the size in bytes that the header of packed data declares."""
    return _HEADER.unpack_from(packed)[1]


def crc16(data: bytes) -> int:
    """Return the CRC-16 with polynomial 0xA001 (reflected) and start value 0."""
    table = _crc_table()
    words = np.frombuffer(data, "<u2", len(data) // 2)
    crc = 0
    for word in words.tolist():
        crc = table[crc ^ word]
    if len(data) % 2:
        crc ^= data[-1]
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc


@lru_cache(maxsize=1)
def _crc_table() -> list[int]:
    """Return the CRC of each 16-bit word."""
    words = np.arange(1 << 16, dtype=np.uint16)
    for _ in range(16):
        words = words >> 1 ^ (words & 1) * np.uint16(0xA001)
    return words.tolist()


class _Unpacker:
    """Reads bits and bytes from the same data.

    Bits come from 16-bit little-endian words, lowest bit first.  A word is read when a
    bit is needed and none is left; bytes continue after the last word.
    """

    def __init__(self, data: bytes):
        self.data = data + b"\0\0"  # the last word may be half outside
        self.position = 0
        self.bits = 0
        self.num_bits = 0

    def unpack(self, num_blocks: int) -> bytes:
        """Return the unpacked bytes of all blocks."""
        out = bytearray()
        self.read_bits(2)  # not used
        try:
            for _ in range(num_blocks):
                self.unpack_block(out)
        except IndexError:
            raise ValueError("the packed data are damaged") from None
        return bytes(out)

    def unpack_block(self, out: bytearray) -> None:
        """Append the unpacked bytes of the next block to ``out``."""
        runs, distances, lengths = (self.read_table() for _ in range(3))
        num_commands = self.read_bits(16)
        for command in range(num_commands):
            run = self.read_value(runs)
            out += self.data[self.position : self.position + run]
            self.position += run
            if command < num_commands - 1:
                distance = self.read_value(distances) + 1
                length = self.read_value(lengths) + 2
                if distance > len(out):
                    raise ValueError("the packed data are damaged")
                piece = out[-distance:][:length]
                repeats = -(-length // len(piece))  # a copy may overlap itself
                out += (piece * repeats)[:length]

    def read_word(self) -> None:
        low, high = self.data[self.position], self.data[self.position + 1]
        self.bits |= (low | high << 8) << self.num_bits
        self.num_bits += 16
        self.position += 2

    def read_bits(self, count: int) -> int:
        while self.num_bits < count:
            self.read_word()
        value = self.bits & (1 << count) - 1
        self.bits >>= count
        self.num_bits -= count
        return value

    def read_table(self) -> _Table:
        """Read the lengths of a canonical Huffman code and return its look-up table."""
        lengths = [self.read_bits(4) for _ in range(self.read_bits(5))]
        longest = max(lengths, default=0)
        table = [(0, _LONG)] * (1 << longest)
        code = 0
        for length in range(1, longest + 1):
            for value, of_value in enumerate(lengths):
                if of_value == length:
                    first = int(f"{code:0{length}b}"[::-1], 2)
                    for bits in range(first, 1 << longest, 1 << length):
                        table[bits] = (value, length)
                    code += 1
            code <<= 1
        return table

    def read_value(self, table: _Table) -> int:
        """Read a code, and the bits that follow it for values from 2 on."""
        mask = len(table) - 1
        value, length = table[self.bits & mask]
        while length > self.num_bits:
            if self.num_bits > _LONG:
                raise ValueError("the packed data are damaged")
            self.read_word()
            value, length = table[self.bits & mask]
        self.bits >>= length
        self.num_bits -= length
        if value < 2:
            return value
        return 1 << value - 1 | self.read_bits(value - 1)
