"""Read cuts of one shard; report damaged files."""

import gzip
import io
import tarfile

import pytest
from dummies import noise_cuts
from lhotse import CutSet

from icefall_kd.data.shar import write_shar
from icefall_kd.fields.format import cuts_path, tar_path
from icefall_kd.fields.reader import open_shar
from icefall_kd.fields.shards import Shard, read_members

COUNT = 6


@pytest.fixture
def folder(tmp_path):
    cuts = noise_cuts(tmp_path, [0.2 + 0.1 * i for i in range(COUNT)], ["A"] * COUNT)
    write_shar(cuts, tmp_path / "shar", shard_size=COUNT)
    return tmp_path / "shar"


@pytest.fixture
def shard(folder):
    tars = {"recording": tar_path(folder, "recording", "000000")}
    return Shard(cuts_path(folder, "000000"), tars)


def test_cuts_equal_those_of_lhotse(folder, shard):
    expected = list(CutSet.from_shar(in_dir=folder))
    found = list(shard.read())
    assert [index for index, _ in found] == list(range(COUNT))
    for (_, cut), other in zip(found, expected):
        assert cut.supervisions == other.supervisions and cut.id == other.id
        assert (cut.load_audio() == other.load_audio()).all()


def test_only_wanted_cuts_are_read(shard):
    every = [cut.id for _, cut in shard.read()]
    assert [c.id for _, c in shard.read(4)] == every[4:]
    assert list(shard.read(COUNT)) == []
    some = list(shard.read(wanted={1, 3}))
    assert [index for index, _ in some] == [1, 3]
    assert [cut.id for _, cut in some] == [every[1], every[3]]


@pytest.mark.parametrize("index", [0, 3, COUNT - 1])
def test_error_names_a_truncated_tar(folder, shard, index):
    path, name = shard.tars["recording"], list(shard.read())[index][1].id
    content = path.read_bytes()
    path.write_bytes(content[: content.index(f"{name}.flac".encode()) + 1500])
    with pytest.raises(ValueError, match=r"recording.000000.tar.*write it again"):
        list(open_shar(folder))


def test_tar_truncated_between_members_raises(folder, shard):
    path = shard.tars["recording"]
    content = path.read_bytes()
    names = [cut.id for _, cut in shard.read()]
    path.write_bytes(content[: content.index(f"{names[4]}.flac".encode())])
    with pytest.raises(ValueError, match=f"has no more where .* cut '{names[4]}'"):
        list(open_shar(folder))


def test_error_names_a_tar_with_a_flipped_bit(folder, shard):
    path = shard.tars["recording"]
    content = bytearray(path.read_bytes())
    name = list(shard.read())[2][1].id
    content[content.index(f"{name}.flac".encode()) + 120] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"recording.000000.tar"):
        list(open_shar(folder))


def test_error_names_a_tar_of_other_cuts(tmp_path, folder, shard):
    (tmp_path / "b").mkdir()
    cuts = noise_cuts(tmp_path / "b", [0.2] * COUNT).modify_ids(lambda i: f"other-{i}")
    write_shar(cuts, tmp_path / "other", shard_size=COUNT)
    tar_path(tmp_path / "other", "recording", "000000").replace(shard.tars["recording"])
    with pytest.raises(ValueError, match=r"cut .other-noise-\d. where .*noise-\d"):
        list(open_shar(folder))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no JSON"])
def test_a_damaged_file_of_cuts_is_named(folder, shard, damage):
    content = bytearray(shard.cuts.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    else:
        content = gzip.compress(b'{"id": "noise-0"\n')
    shard.cuts.write_bytes(content)
    with pytest.raises(ValueError, match=r"cuts.000000.jsonl.gz: damaged at line \d"):
        list(open_shar(folder))


NAMES = ["a.npy", "dir/b.json", "c" * 100, "d" * 101, "e" * 300 + ".npy", "grüße.npy"]


def write_tar(path, format, names=NAMES):
    """Write a tar whose members have 0, 300, 600, ... bytes."""
    with tarfile.open(path, "w", format=format) as tar:
        for n, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 300 * n
            tar.addfile(info, io.BytesIO(bytes([n]) * info.size))
    return path


def list_members(path):
    with open(path, "rb") as f:
        return list(read_members(f))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_equal_those_of_tarfile(tmp_path, format):
    path = write_tar(tmp_path / "x.tar", format)
    with tarfile.open(path) as tar:
        expected = [(i.name, i.offset_data, i.size) for i in tar]
    assert [m[:3] for m in list_members(path)] == expected and len(expected) == len(
        NAMES
    )
    with open(path, "rb") as f:
        for member in read_members(f):
            f.seek(member.offset)  # the caller may read elsewhere in between
            assert f.read(member.size).startswith(member.head)
            assert len(member.head) in (member.size, 128)


def test_name_with_a_prefix_is_complete(tmp_path):
    names = ["long/" * 25 + "x.npy", "y.npy"]
    path = write_tar(tmp_path / "x.tar", tarfile.USTAR_FORMAT, names)
    assert [m.name for m in list_members(path)] == names


@pytest.mark.parametrize("offset", [3, 110, 126, 150, 156, 200, 400])
def test_flipped_bit_in_a_header_is_found(tmp_path, offset):
    path = write_tar(
        tmp_path / "x.tar", tarfile.PAX_FORMAT, ["a.npy", "b.npy", "c.npy"]
    )
    content = bytearray(path.read_bytes())
    content[list_members(path)[1].offset - 512 + offset] ^= 0x04
    path.write_bytes(content)
    with pytest.raises(tarfile.TarError, match="no header of a member at byte 512"):
        list_members(path)


@pytest.mark.parametrize("lost", [1, 299, 512, 700])
def test_truncated_data_are_found(tmp_path, lost):
    path = write_tar(
        tmp_path / "x.tar", tarfile.PAX_FORMAT, ["a.npy", "b.npy", "c.npy"]
    )
    end = list_members(path)[-1].offset + list_members(path)[-1].size
    path.write_bytes(path.read_bytes()[: end - lost])
    with pytest.raises(tarfile.TarError, match="unexpected end|no header"):
        list_members(path)


def test_empty_tar_has_no_members(tmp_path):
    assert list_members(write_tar(tmp_path / "x.tar", tarfile.PAX_FORMAT, [])) == []
