"""Members of a tar, found by their headers alone, against those tarfile finds."""

import io
import tarfile

import pytest

from icefall_kd.fields.shards import read_members

NAMES = ["a.npy", "dir/b.json", "c" * 100, "d" * 101, "e" * 300 + ".npy", "grüße.npy"]


def write(path, format, names=NAMES):
    """Write a tar whose members have 0, 300, 600, ... bytes."""
    with tarfile.open(path, "w", format=format) as tar:
        for n, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 300 * n
            tar.addfile(info, io.BytesIO(bytes([n]) * info.size))
    return path


def found(path):
    with open(path, "rb") as f:
        return list(read_members(f))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_equal_those_of_tarfile(tmp_path, format):
    path = write(tmp_path / "x.tar", format)
    with tarfile.open(path) as tar:
        expected = [(i.name, i.offset_data, i.size) for i in tar]
    assert [m[:3] for m in found(path)] == expected and len(expected) == len(NAMES)
    with open(path, "rb") as f:
        for member in read_members(f):
            f.seek(member.offset)  # the caller may read elsewhere in between
            assert f.read(member.size).startswith(member.head)
            assert len(member.head) in (member.size, 128)


def test_name_with_a_prefix_is_complete(tmp_path):
    names = ["long/" * 25 + "x.npy", "y.npy"]
    path = write(tmp_path / "x.tar", tarfile.USTAR_FORMAT, names)
    assert [m.name for m in found(path)] == names


@pytest.mark.parametrize("place", [3, 110, 126, 150, 156, 200, 400])
def test_flipped_bit_in_a_header_is_found(tmp_path, place):
    path = write(tmp_path / "x.tar", tarfile.PAX_FORMAT, ["a.npy", "b.npy", "c.npy"])
    content = bytearray(path.read_bytes())
    content[found(path)[1].offset - 512 + place] ^= 0x04
    path.write_bytes(content)
    with pytest.raises(tarfile.TarError, match="no header of a member at byte 512"):
        found(path)


@pytest.mark.parametrize("lost", [1, 299, 512, 700])
def test_truncated_data_are_found(tmp_path, lost):
    path = write(tmp_path / "x.tar", tarfile.PAX_FORMAT, ["a.npy", "b.npy", "c.npy"])
    end = found(path)[-1].offset + found(path)[-1].size
    path.write_bytes(path.read_bytes()[: end - lost])
    with pytest.raises(tarfile.TarError, match="unexpected end|no header"):
        found(path)


def test_empty_tar_has_no_members(tmp_path):
    assert found(write(tmp_path / "x.tar", tarfile.PAX_FORMAT, [])) == []
