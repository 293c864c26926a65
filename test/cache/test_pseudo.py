"""Transcripts of a real Whisper in the place of a person's."""

import gzip
import json
from collections import namedtuple

import pytest
import real_teachers
from kaldialign import edit_distance

from icefall_kd.cache.pseudo import Limits, pseudo_label
from icefall_kd.cache.reader import check_field, open_shar
from icefall_kd.cache.teach import load_wave
from icefall_kd.teachers.whisper_text import WhisperText

tiny_dir = real_teachers.tiny_dir  # fixture
Heard = namedtuple("Heard", "text confidence")


@pytest.fixture(scope="module")
def reader(tiny_dir):
    return WhisperText(tiny_dir, num_threads=1, compute_type="int8")


@pytest.fixture(scope="module")
def labelled(taught_shar, reader, tmp_path_factory):
    output = tmp_path_factory.mktemp("pseudo") / "shar"
    return output, pseudo_label(taught_shar, output, reader)


def texts(folder):
    return {
        c.id: c.supervisions[0].text if c.supervisions else ""
        for c in open_shar(folder)
    }


def test_a_real_whisper_reads_the_prompts(taught_shar, labelled):
    output, counts = labelled
    right, heard = texts(taught_shar), texts(output)
    assert right.keys() == heard.keys() and sum(counts.values()) == len(right)
    errors = sum(
        edit_distance(text.split(), heard[i].split())["total"]
        for i, text in right.items()
        if heard[i]
    )
    words = sum(len(text.split()) for i, text in right.items() if heard[i])
    assert words > 60 and errors / words < 0.15
    assert counts["labelled"] >= 16


def test_audio_and_fields_are_those_of_the_input(taught_shar, labelled):
    output, _ = labelled
    check_field(output, "whisper_tiny_en")
    before = list(open_shar(taught_shar, ["whisper_tiny_en"]))
    after = list(open_shar(output, ["whisper_tiny_en"]))
    for a, b in zip(before, after):
        assert a.id == b.id and (a.load_audio() == b.load_audio()).all()
        assert (a.whisper_tiny_en.load() == b.whisper_tiny_en.load()).all()
    confidence = after[0].supervisions[0].custom["confidence"]
    assert -1.0 < confidence <= 0.0


def test_a_second_run_keeps_what_is_there_and_goes_on_after_a_kill(
    taught_shar, labelled, tmp_path
):
    output, counts = labelled

    class Deaf:
        def fingerprint(self):
            return json.loads((output / "pseudo_labels.json").read_text())["reader"]

        def transcribe(self, waves):
            raise AssertionError("everything was read before")

    assert pseudo_label(taught_shar, output, Deaf()) == counts


def test_transcripts_made_otherwise_are_refused(taught_shar, labelled, reader):
    output, _ = labelled
    with pytest.raises(ValueError, match="holds transcripts made otherwise"):
        pseudo_label(taught_shar, output, reader, min_confidence=-0.1)


def test_what_is_not_taken_is_counted_and_has_no_text(taught_shar, tmp_path):
    class Babbler:
        words = iter(["", "one two three " * 50, "yes", "maybe"])

        def fingerprint(self):
            return {}

        def transcribe(self, waves):
            said = [next(self.words, "yes") for _ in waves]
            return [Heard(s, -3.0 if s == "maybe" else -0.1) for s in said]

    counts = pseudo_label(taught_shar, tmp_path / "out", Babbler(), batch_size=1)
    expected = {"empty": 1, "too many words": 1, "uncertain": 1, "labelled": 15}
    assert counts == expected
    assert sorted(texts(tmp_path / "out").values()) == [""] * 3 + ["YES"] * 15
    with gzip.open(tmp_path / "out/cuts.000000.jsonl.gz", "rt") as f:
        assert len(f.readlines()) == 5


def test_threads_read_what_one_reads(tiny_dir, pristine_shar):
    waves = [load_wave(cut) for cut in open_shar(pristine_shar)][:3]
    options = {"compute_type": "int8"}
    one = WhisperText(tiny_dir, num_threads=1, **options).transcribe(waves)
    two = WhisperText(tiny_dir, num_threads=2, **options).transcribe(waves)
    assert [t.text for t in one] == [t.text for t in two]
    assert [t.confidence for t in one] == pytest.approx([t.confidence for t in two])
    assert WhisperText(tiny_dir, num_threads=2, **options).transcribe([]) == []


@pytest.mark.parametrize(
    "text, confidence, verdict",
    [
        ("A B", -0.2, "labelled"),
        ("", -0.2, "empty"),
        ("A", -0.9, "uncertain"),
        ("A B C D E F G", -0.1, "too many words"),
    ],
)
def test_limits_say_why(text, confidence, verdict):
    assert Limits(-0.7, 6.0).verdict(text, confidence, 1.0) == verdict


def test_a_folder_without_tokenizer_and_another_language_are_refused(
    tiny_dir, tmp_path
):
    with pytest.raises(FileNotFoundError, match="tokenizer.json is missing"):
        WhisperText(tmp_path)
    with pytest.raises(ValueError, match="reads English, not 'de'"):
        WhisperText(tiny_dir, language="de", num_threads=1)
