"""LibriSpeech, read from a folder of its shape."""

import shutil

import pytest
from small_librispeech import UTTERANCES

from icefall_kd.corpora.librispeech import prepare_librispeech
from icefall_kd.data.normalise import NORMALISED


def test_utterances_are_cuts_with_their_text_and_refer_to_the_audio(librispeech):
    cuts = list(prepare_librispeech(librispeech))
    assert [cut.id for cut in cuts] == sorted(cut.id for cut in cuts)
    assert len(cuts) == 2 * UTTERANCES
    first = cuts[0]
    assert first.id == "19-119-0000" and first.supervisions[0].speaker == "19"
    flac = librispeech / "LibriSpeech/train-clean-100/19/119/19-119-0000.flac"
    assert first.recording.sources[0].source == str(flac)
    assert all(NORMALISED.match(cut.supervisions[0].text) for cut in cuts)
    (said,) = (
        line.split(maxsplit=1)[1]
        for line in (flac.parent / "19-119.trans.txt").read_text().splitlines()
        if line.startswith(first.id)
    )
    assert first.supervisions[0].text == said
    assert first.load_audio().shape == (1, first.num_samples)


def test_unlabelled_parts_have_no_supervisions(librispeech):
    parts = ("train-other-500", "train-clean-360")
    cuts = prepare_librispeech(librispeech / "LibriSpeech", parts=parts, labelled=False)
    assert len(list(cuts)) == 2 * UTTERANCES
    assert not any(cut.supervisions for cut in cuts)


def test_a_part_of_another_size_than_released_is_told(librispeech, caplog):
    prepare_librispeech(librispeech, parts=["dev-other"])
    assert f"dev-other: {UTTERANCES} utterances, the release has 2864" in caplog.text


def test_a_part_that_is_not_there_is_named_with_its_archive(librispeech):
    with pytest.raises(FileNotFoundError, match="train-clean-5.*Remedy.*train-clean-5"):
        prepare_librispeech(librispeech, parts=["train-clean-5"])


def test_transcripts_without_audio_are_refused(librispeech, tmp_path):
    part = tmp_path / "LibriSpeech/dev-other"
    shutil.copytree(
        librispeech / "LibriSpeech/dev-other",
        part,
        ignore=shutil.ignore_patterns("*.flac"),
    )
    with pytest.raises(FileNotFoundError, match=r"dev-other: no \*/\*/\*.flac in it"):
        prepare_librispeech(tmp_path, parts=["dev-other"])
