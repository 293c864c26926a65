"""One shard: any of its cuts, and what is told when a file is damaged."""

import gzip

import pytest
from dummies import noise_cuts
from lhotse import CutSet

from icefall_kd.data.shar import write_shar
from icefall_kd.fields.format import cuts_path, tar_path
from icefall_kd.fields.reader import open_shar
from icefall_kd.fields.shards import Shard

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
    assert [place for place, _ in found] == list(range(COUNT))
    for (_, cut), other in zip(found, expected):
        assert cut.supervisions == other.supervisions and cut.id == other.id
        assert (cut.load_audio() == other.load_audio()).all()


def test_only_wanted_cuts_are_read(shard):
    every = [cut.id for _, cut in shard.read()]
    assert [c.id for _, c in shard.read(4)] == every[4:]
    assert list(shard.read(COUNT)) == []
    some = list(shard.read(wanted={1, 3}))
    assert [place for place, _ in some] == [1, 3]
    assert [cut.id for _, cut in some] == [every[1], every[3]]


@pytest.mark.parametrize("place", [0, 3, COUNT - 1])
def test_error_names_a_truncated_tar(folder, shard, place):
    path, name = shard.tars["recording"], list(shard.read())[place][1].id
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
