import struct

import pytest

from icefall_kd.corpora.rnc import crc16, unpack_rnc


class BitWriter:
    """Writes bits to 16-bit words, lowest first, and bytes after the last word."""

    def __init__(self):
        self.data = bytearray()
        self.used = 16
        self.word = 0  # position of the last word

    def write_bits(self, value, count):
        for i in range(count):
            if self.used == 16:
                self.word, self.used = len(self.data), 0
                self.data += bytes(2)
            bit = value >> i & 1
            self.data[self.word + self.used // 8] |= bit << self.used % 8
            self.used += 1


def pack_repeats(word, num_copies):
    """Return packed and unpacked bytes: ``word``, copies of it, and ``word`` again.

    One command copies all copies from the first word.  Each of the three codes has one
    value, whose code is the bit 0.
    """
    writer = BitWriter()

    def write_value(n):
        writer.write_bits(0, 1)
        writer.write_bits(n, max(0, n.bit_length() - 1))

    run, distance, length = len(word), len(word) - 1, num_copies * len(word) - 2
    writer.write_bits(0, 2)
    for n in (run, distance, length):
        writer.write_bits(n.bit_length() + 1, 5)
        writer.write_bits(0, 4 * n.bit_length())
        writer.write_bits(1, 4)
    writer.write_bits(2, 16)  # commands
    write_value(run)
    writer.data += word
    write_value(distance)
    write_value(length)
    write_value(run)
    writer.data += word
    unpacked = word * (num_copies + 2)
    header = struct.pack(
        ">4sIIHHBB",
        b"RNC\1",
        len(unpacked),
        len(writer.data),
        crc16(unpacked),
        crc16(writer.data),
        0,
        1,
    )
    return header + bytes(writer.data), unpacked


@pytest.mark.parametrize("word, num_copies", [(b"abc", 5), (b"0123456789" * 9, 300)])
def test_copies_overlap_themselves(word, num_copies):
    packed, unpacked = pack_repeats(word, num_copies)
    assert unpack_rnc(packed) == unpacked
    assert unpack_rnc(packed + b"more") == unpacked


def test_checksum_is_crc_16_arc():
    assert crc16(b"123456789") == 0xBB3D
    assert crc16(b"") == 0


@pytest.mark.parametrize("position, message", [(0, "no header"), (20, "packed data")])
def test_damaged_byte_is_reported(position, message):
    packed = bytearray(pack_repeats(b"abc", 5)[0])
    packed[position] ^= 1
    with pytest.raises(ValueError, match=message):
        unpack_rnc(bytes(packed))


def test_wrong_checksum_of_the_result_is_reported():
    packed = bytearray(pack_repeats(b"abc", 5)[0])
    packed[12] ^= 1
    with pytest.raises(ValueError, match="unpacked data"):
        unpack_rnc(bytes(packed))


def test_truncated_data_are_reported():
    packed, _ = pack_repeats(b"abc", 5)
    with pytest.raises(ValueError, match="damaged"):
        unpack_rnc(packed[:-1])
    with pytest.raises(ValueError, match="no header"):
        unpack_rnc(packed[:10])
