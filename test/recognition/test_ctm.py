"""CTM files: there and back, as lhotse reads them, and those of another set."""

import pytest
from lhotse import SupervisionSet
from lhotse.supervision import AlignmentItem

from icefall_kd.data.shar import write_shar
from icefall_kd.recognition.ctm import (
    load_word_times,
    read_channels,
    read_ctm,
    transcripts,
    write_ctm,
)


@pytest.fixture
def shar(cuts, tmp_path):
    """Two shards of real prompts."""
    write_shar(cuts[:6], tmp_path / "shar", shard_size=4)
    return tmp_path / "shar"


@pytest.fixture
def times(cuts):
    """Words of one length, the last of which ends with its cut."""
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


def test_what_is_written_is_read_back(ctm, shar, times):
    found = load_word_times(ctm, shar)
    assert set(found) == set(times)
    for cut_id, items in times.items():
        for ours, theirs in zip(items, found[cut_id]):
            assert ours.symbol == theirs.symbol and ours.score == theirs.score
            assert (theirs.start, theirs.end) == pytest.approx(
                (ours.start, ours.end), abs=1.1e-3
            )
    assert sorted(ctm.parent.iterdir()) == [ctm, shar]  # nothing aside is left


def test_lhotse_reads_every_word(ctm, cuts, times):
    segments = SupervisionSet.from_segments(c.supervisions[0] for c in cuts[:6])
    aligned = segments.with_alignment_from_ctm(ctm, match_channel=True)
    found = {s.recording_id: [i.symbol for i in s.alignment["word"]] for s in aligned}
    assert found == {k: [i.symbol for i in items] for k, items in times.items()}


def test_the_set_is_read_without_its_audio(cuts, shar):
    (shar / "recording.000000.tar").unlink()
    said = {cut.id: cut.supervisions[0].text.split() for cut in cuts[:6]}
    assert transcripts(shar) == said
    assert read_channels(shar) == dict.fromkeys(said, 0)


def test_an_alignment_of_more_cuts_serves(ctm, shar):
    ctm.write_text(ctm.read_text() + ";; a comment\n\nother A 0.1 0.2 WORD\n")
    assert load_word_times(ctm, shar)["other"] == [AlignmentItem("WORD", 0.1, 0.2)]


def test_an_alignment_of_another_set_is_told_with_counts_and_examples(ctm, shar, times):
    missing, other = sorted(times)[:2]
    lines = ctm.read_text().splitlines(keepends=True)
    lines = [line for line in lines if not line.startswith(f"{missing} ")]
    changed = next(line for line in lines if line.startswith(f"{other} "))
    lines.remove(changed)
    ctm.write_text("".join(lines))
    with pytest.raises(ValueError) as refused:
        load_word_times(ctm, shar)
    said = " ".join(item.symbol for item in times[other])
    left = " ".join(item.symbol for item in times[other][1:])
    told = str(refused.value)
    assert f"1 of 6 cuts are not in it, for example {missing}" in told
    assert "1 of 6 cuts have other words, for example " in told
    assert f"{other} has '{left}' in the place of '{said}'" in told
    assert f"{ctm}" in told and "icefall_kd.bin.align" in told


@pytest.mark.parametrize(
    "line",
    ["a 0 0.1 0.2", "a 0 x 0.2 WORD 1.0", "a 0 0.1 -0.2 WORD", "a 0 0 nan B", "a " * 7],
)
def test_a_bad_line_is_named(tmp_path, line):
    (tmp_path / "a.ctm").write_text(f"a 0 0.1 0.2 WORD 0.9\n{line}\n")
    with pytest.raises(ValueError, match=r"a\.ctm:2: not a line of a CTM file"):
        read_ctm(tmp_path / "a.ctm")


def test_a_file_that_is_not_there_is_told_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="a.ctm.*icefall_kd.bin.align"):
        read_ctm(tmp_path / "a.ctm")


def test_an_id_that_the_form_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 ids .*'my cut'"):
        write_ctm(tmp_path / "a.ctm", {"my cut": []}, {})
    assert list(tmp_path.iterdir()) == []
