"""CTM files, and their validation against a set."""

import pytest
from lhotse import SupervisionSet
from lhotse.supervision import AlignmentItem

from icefall_kd.data.shar import write_shar
from icefall_kd.recognition.ctm import (
    load_alignment,
    read_channels,
    read_ctm,
    read_transcripts,
    write_ctm,
)


@pytest.fixture
def shar(cuts, tmp_path):
    """Two shards of real prompts."""
    write_shar(cuts[:6], tmp_path / "shar", shard_size=4)
    return tmp_path / "shar"


@pytest.fixture
def times(cuts):
    """Words of equal length that fill each cut."""
    found = {}
    for cut in cuts[:6]:
        words = cut.supervisions[0].text.split()
        length = cut.duration / len(words)
        found[cut.id] = [
            AlignmentItem(word, i * length, length, 0.5) for i, word in enumerate(words)
        ]
    return found


@pytest.fixture
def ctm(times, shar, tmp_path):
    write_ctm(tmp_path / "a.ctm", times, read_channels(shar))
    return tmp_path / "a.ctm"


def test_ctm_is_read_as_written(ctm, shar, times):
    found = load_alignment(ctm, shar)
    assert set(found) == set(times)
    for cut_id, items in times.items():
        for ours, theirs in zip(items, found[cut_id]):
            assert ours.symbol == theirs.symbol and ours.score == theirs.score
            assert (theirs.start, theirs.end) == pytest.approx(
                (ours.start, ours.end), abs=1.1e-3
            )
    assert sorted(ctm.parent.iterdir()) == [ctm, shar]  # no temporary files


def test_lhotse_reads_each_word(ctm, cuts, times):
    segments = SupervisionSet.from_segments(c.supervisions[0] for c in cuts[:6])
    aligned = segments.with_alignment_from_ctm(ctm, match_channel=True)
    found = {s.recording_id: [i.symbol for i in s.alignment["word"]] for s in aligned}
    assert found == {k: [i.symbol for i in items] for k, items in times.items()}


def test_transcripts_and_channels_are_read_without_audio(cuts, shar):
    (shar / "recording.000000.tar").unlink()
    words = {cut.id: cut.supervisions[0].text.split() for cut in cuts[:6]}
    assert read_transcripts(shar) == words
    assert read_channels(shar) == dict.fromkeys(words, 0)


def test_alignment_may_have_further_cuts(ctm, shar):
    ctm.write_text(ctm.read_text() + ";; a comment\n\nother A 0.1 0.2 WORD\n")
    assert load_alignment(ctm, shar)["other"] == [AlignmentItem("WORD", 0.1, 0.2)]


def test_alignment_of_another_set_is_refused(ctm, shar, times):
    missing, other = sorted(times)[:2]
    lines = ctm.read_text().splitlines(keepends=True)
    lines = [line for line in lines if not line.startswith(f"{missing} ")]
    changed = next(line for line in lines if line.startswith(f"{other} "))
    lines.remove(changed)
    ctm.write_text("".join(lines))
    with pytest.raises(ValueError) as refused:
        load_alignment(ctm, shar)
    words = [item.symbol for item in times[other]]
    message = str(refused.value)
    assert f"1 of 6 cuts are missing, for example {missing}" in message
    assert f"{other} has '{' '.join(words[1:])}'" in message
    assert f"'{' '.join(words)}'" in message
    assert str(ctm) in message and "icefall_kd.bin.align" in message


@pytest.mark.parametrize(
    "line",
    ["a 0 0.1 0.2", "a 0 x 0.2 WORD 1.0", "a 0 0.1 -0.2 WORD", "a 0 0 nan B", "a " * 7],
)
def test_malformed_line_is_reported(tmp_path, line):
    (tmp_path / "a.ctm").write_text(f"a 0 0.1 0.2 WORD 0.9\n{line}\n")
    with pytest.raises(ValueError, match=r"a\.ctm:2: invalid line"):
        read_ctm(tmp_path / "a.ctm")


def test_missing_alignment_is_reported_with_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="a.ctm.*icefall_kd.bin.align"):
        read_ctm(tmp_path / "a.ctm")


def test_cut_id_with_space_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 cut ids .*'my cut'"):
        write_ctm(tmp_path / "a.ctm", {"my cut": []}, {})
    assert list(tmp_path.iterdir()) == []
