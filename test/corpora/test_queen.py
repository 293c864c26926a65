import struct

import pytest

from icefall_kd.corpora.queen import prepare_queen, read_index
from icefall_kd.data.audio_files import decode


def data_file(members):
    """Lay out a data file as the game has it, with ``members`` name -> bytes."""
    index = b""
    offset = 15 + 21 * len(members)
    for name, content in members.items():
        index += struct.pack(">12sBII", name.encode(), 1, offset, len(content))
        offset += len(content)
    head = b"QTBLCEM10\0\0\0\0" + struct.pack(">H", len(members))
    return head + index + b"".join(members.values())


def test_index_gives_each_member_its_bytes():
    members = {"A.SB": b"abc", "LONGNAME.TXT": b"", "B.SB": b"de"}
    data = data_file(members)
    found = {m.name: data[m.offset : m.offset + m.size] for m in read_index(data)}
    assert found == members


@pytest.mark.parametrize(
    "data, message",
    [
        (b"MZ" + bytes(100), "no QTBL"),
        (data_file({"A.SB": b"abc"})[:30], "index of 1 members is cut off"),
        (data_file({"A.SB": b"abc"})[:-1], "A.SB lies outside"),
    ],
)
def test_damaged_data_file_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        read_index(data)


def test_missing_data_file_names_the_package(tmp_path):
    with pytest.raises(FileNotFoundError, match="flight-of-the-amazon-queen"):
        prepare_queen(tmp_path, tmp_path / "audio")


def test_the_real_game_holds_its_dialogue(asterisk_pool):
    (path,) = (asterisk_pool / "download/pool").rglob("queen.1c")
    data = path.read_bytes()
    members = read_index(data)
    dialogue = [m for m in members if m.name.endswith(".SB")]
    assert (len(members), len(dialogue)) == (7671, 6745)
    first = dialogue[0]
    samples = decode(data[first.offset : first.offset + first.size], "mp3")
    assert samples.dtype == "int16" and 1.0 < samples.size / 16000 < 5.0


def test_slice_of_the_game_is_about_as_long_as_asked(asterisk_pool, tmp_path):
    cuts = prepare_queen(asterisk_pool / "download/pool", tmp_path, max_minutes=1.0)
    assert 0.7 < sum(cut.duration for cut in cuts) / 60 < 1.3
    assert all(cut.sampling_rate == 16000 and not cut.supervisions for cut in cuts)
