"""The LibriSpeech recipe's script, on a small folder of the same structure."""

import shutil

import pytest
from recipe import load_script
from small_librispeech import UTTERANCES

from icefall_kd.data.normalise import NORMALISED

script = load_script("prepare_librispeech", "librispeech")


def test_utterances_become_cuts_that_refer_to_the_audio(librispeech):
    cuts = list(script.read_cuts(librispeech, ["train-clean-100"], labelled=True))
    assert [cut.id for cut in cuts] == sorted(cut.id for cut in cuts)
    assert len(cuts) == 2 * UTTERANCES
    first = cuts[0]
    assert first.id == "19-119-0000" and first.supervisions[0].speaker == "19"
    flac = librispeech / "LibriSpeech/train-clean-100/19/119/19-119-0000.flac"
    assert first.recording.sources[0].source == str(flac)
    assert all(NORMALISED.match(cut.supervisions[0].text) for cut in cuts)
    line = (flac.parent / "19-119.trans.txt").read_text().splitlines()[0]
    assert line == f"{first.id} {first.supervisions[0].text}"
    assert first.load_audio().shape == (1, first.num_samples)


def test_unlabelled_parts_have_no_supervisions(librispeech):
    parts = ("train-other-500", "train-clean-360")
    cuts = script.read_cuts(librispeech / "LibriSpeech", parts, labelled=False)
    assert len(list(cuts)) == 2 * UTTERANCES
    assert not any(cut.supervisions for cut in cuts)


def test_incomplete_part_is_logged_with_both_sizes(librispeech, caplog):
    script.read_cuts(librispeech, ["dev-other"], labelled=True)
    assert f"dev-other: {UTTERANCES} utterances, the release has 2864" in caplog.text


def test_missing_part_is_reported_with_its_archive(librispeech):
    with pytest.raises(FileNotFoundError, match="train-clean-5.*train-clean-5.tar.gz"):
        script.read_cuts(librispeech, ["train-clean-5"], labelled=True)


def test_transcripts_without_audio_are_refused(librispeech, tmp_path):
    shutil.copytree(
        librispeech / "LibriSpeech/dev-other",
        tmp_path / "LibriSpeech/dev-other",
        ignore=shutil.ignore_patterns("*.flac"),
    )
    with pytest.raises(FileNotFoundError, match=r"dev-other: no \*/\*/\*.flac"):
        script.read_cuts(tmp_path, ["dev-other"], labelled=True)
