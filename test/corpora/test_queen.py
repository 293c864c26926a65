"""The dialogue of Flight of the Amazon Queen."""

import struct
from collections import Counter

import pytest

from icefall_kd.corpora.audio import store_clips
from icefall_kd.corpora.queen import (
    read_data_file,
    read_dialogue,
    read_members,
    read_texts,
)
from icefall_kd.data.audio_files import decode


def build_data_file(members):
    """Return a data file of the game.

    Args:
      members: name -> bytes.
    """
    index = b""
    offset = 15 + 21 * len(members)
    for name, content in members.items():
        index += struct.pack(">12sBII", name.encode(), 1, offset, len(content))
        offset += len(content)
    head = b"QTBLCEM10\0\0\0\0" + struct.pack(">H", len(members))
    return head + index + b"".join(members.values())


def test_members_have_their_bytes():
    members = {"A.SB": b"abc", "LONGNAME.TXT": b"", "B.SB": b"de"}
    assert read_members(build_data_file(members)) == members


@pytest.mark.parametrize(
    "data, message",
    [
        (b"MZ" + bytes(100), "no QTBL"),
        (build_data_file({"A.SB": b"abc"})[:30], "index of 1 members is truncated"),
        (build_data_file({"A.SB": b"abc"})[:-1], "A.SB exceeds the file"),
    ],
)
def test_damaged_data_file_is_refused(data, message, tmp_path):
    (tmp_path / "queen.1c").write_bytes(data)
    with pytest.raises(ValueError, match=f"queen.1c: .*{message}"):
        read_dialogue(tmp_path)


def test_missing_data_file_is_reported_with_the_package(tmp_path):
    with pytest.raises(FileNotFoundError, match="flight-of-the-amazon-queen"):
        read_dialogue(tmp_path)


def test_the_game_has_its_dialogue(asterisk_unlabelled, tmp_path):
    source = asterisk_unlabelled / "download/pool"
    (path,) = source.rglob("queen.1c")
    assert len(read_members(path.read_bytes())) == 7671
    clips = read_dialogue(source)
    assert len(clips) == 6745
    samples = decode(clips[0].source, "mp3")
    assert samples.dtype == "int16" and 1.0 < samples.size / 16000 < 5.0
    cuts = store_clips(read_dialogue(source, max_minutes=1.0), tmp_path)
    assert 0.7 < sum(cut.duration for cut in cuts) / 60 < 1.3
    assert all(cut.sampling_rate == 16000 and not cut.supervisions for cut in cuts)


@pytest.fixture(scope="module")
def texts(adventure_packages):
    return read_texts(read_data_file(adventure_packages))


def test_every_text_of_the_game_has_source_and_speaker(texts):
    sources = Counter(text.source for text in texts.values())
    assert sources == {"DOG": 3983, "CUT": 2040, "JAS": 564}
    speakers = Counter(text.speaker for text in texts.values())
    assert speakers["joe"] == 1930 and speakers["cut"] == 2040
    assert len(speakers) == 31


@pytest.mark.parametrize(
    "name, text, speaker",
    [
        # Commands are removed.
        ("020006J1", "At least I don't look like I need to wear one.", "joe"),
        ("29001FJ2", "It's his birthday you see.", "joe"),  # second segment
        # The first of two texts.
        ("290020P2", "Sorry, but you've picked the wrong building.", "laris"),
        ("C63K_081", "Birth marks don't count!", "cut"),
        ("JOE02551", "Hmmm...", "joe"),
    ],
)
def test_clip_has_its_text(texts, name, text, speaker):
    found = texts[f"{name}.SB"]
    assert (found.text, found.speaker) == (text, speaker)
