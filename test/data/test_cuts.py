"""Shar folders that Lhotse wrote without the data gate, and texts of cuts."""

import dataclasses
import io
import json
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, CutSet, Recording
from lhotse.utils import fastcopy
from shar_faults import rewrite_cuts
from term_inputs import MODEL

from icefall_kd.data.cuts import INVISIBLE, check_cuts, get_transcript, load_wave
from icefall_kd.dataset.dataset import BatchDataset
from icefall_kd.distill import TermsConfig
from icefall_kd.distill.transducer import CtcConfig
from icefall_kd.fields.extract import extract
from icefall_kd.fields.reader import open_shar, open_shards, read_texts
from icefall_kd.pseudo.pseudo_label import pseudo_label
from icefall_kd.recognition.recognise import reference_words
from icefall_kd.training.config import DataConfig, TrainConfig
from icefall_kd.training.setup import build_setup


@pytest.fixture(scope="module")
def prompts(asterisk):
    """Test prompts with their audio in memory, as Lhotse loads them."""
    cuts = open_shar(asterisk / "data/shar/test")
    return [fastcopy(cut, custom=None) for cut, _ in zip(cuts, range(8))]


def write_lhotse_shar(cuts, folder):
    """Write a Shar folder with Lhotse alone."""
    folder.mkdir(parents=True)
    CutSet.from_cuts(cuts).to_shar(folder, {"recording": "flac"}, shard_size=3)
    return folder


def with_text(cut, text):
    return fastcopy(cut, supervisions=[fastcopy(cut.supervisions[0], text=text)])


def with_two_supervisions(cut):
    copies = [
        fastcopy(s, id=f"{s.id}-{n}")
        for n, s in enumerate(cut.supervisions + cut.supervisions)
    ]
    return fastcopy(cut, supervisions=copies)


def make_stereo(cut, path):
    audio = cut.load_audio()[0]
    soundfile.write(path, np.stack([audio, audio], axis=1), 16000)
    new = Recording.from_file(path, recording_id=cut.recording.id).to_cut()
    return fastcopy(new, id=cut.id, supervisions=cut.supervisions)


def replace_first_by_mixed(folder):
    """Replace the first cut of a Shar folder by a mixed cut."""

    def change(lines):
        cut = json.loads(lines[0])
        track = {"cut": cut, "type": "MonoCut", "offset": 0.0}
        line = {"id": cut["id"], "tracks": [track], "type": "MixedCut"}
        return [json.dumps(line), *lines[1:]]

    rewrite_cuts(folder, "000000", change)


# Reason -> function that returns a cut with this fault.  Every command checks FORMS;
# commands that use transcripts also check TEXTS.
FORMS = {
    "duplicate_id": lambda cut, path: fastcopy(cut, id="same"),
    "not_mono": make_stereo,
    "other_rate": lambda cut, path: cut.resample(8000),
    "mixed_cut": lambda cut, path: cut,  # see replace_first_by_mixed
}
TEXTS = {
    "two_supervisions": lambda cut, path: with_two_supervisions(cut),
    "empty_text": lambda cut, path: with_text(cut, None),
    "unknown_tokens": lambda cut, path: with_text(cut, "hello"),
    "too_few_frames": lambda cut, path: with_text(cut, "ONE TWO " * 200),
}


@pytest.fixture(scope="module")
def folders(prompts, tmp_path_factory):
    """Reason -> Shar folder whose first one or two cuts have this fault."""
    root = tmp_path_factory.mktemp("unchecked")
    found = {}
    for reason, fault in {**FORMS, **TEXTS}.items():
        count = 2 if reason == "duplicate_id" else 1
        cuts = [fault(cut, root / f"{reason}.wav") for cut in prompts[:count]]
        found[reason] = write_lhotse_shar(
            [*cuts, *prompts[count:]], root / reason / "train"
        )
        if reason == "mixed_cut":
            replace_first_by_mixed(found[reason])
    found["good"] = write_lhotse_shar(prompts, root / "good" / "train")
    return found


def train_on(folder, asterisk):
    """Set up a training on a Shar folder, which checks its cuts."""
    return build_setup(
        TrainConfig(
            exp_dir=str(folder.parent / "exp"),
            model=dataclasses.replace(MODEL, vocab_size=0),
            data=DataConfig(
                shar_dir=str(folder.parent),
                bpe_model=str(asterisk / "data/lang_bpe_150/bpe.model"),
                dev=None,
            ),
            terms=TermsConfig(ctc=CtcConfig()),
        )
    )


@pytest.mark.parametrize("reason", [*FORMS, *TEXTS])
def test_training_refuses_cuts_that_the_gate_drops(reason, folders, prompts, asterisk):
    with pytest.raises(ValueError) as caught:
        train_on(folders[reason], asterisk)
    line = str(caught.value)
    wrong = "same" if reason == "duplicate_id" else prompts[0].id
    assert f"train: 1 of 8 cuts cannot be used: {reason}: 1 cuts" in line
    assert f"{wrong} (" in line and "Remedy: " in line and "\n" not in line


def test_training_accepts_a_good_set(folders, asterisk):
    assert train_on(folders["good"], asterisk).train_stream.counts() == (8, 8)


@pytest.mark.parametrize("reason", FORMS)
def test_extraction_and_pseudo_labelling_refuse_cuts_that_the_gate_drops(
    reason,
    folders,
    tiny,  # noqa: F811
    tmp_path,
):
    teacher = SimpleNamespace(fingerprint=dict, transcribe=None)  # is not called
    before = sorted(folders[reason].iterdir())
    with pytest.raises(ValueError, match=f"1 of 8 cuts cannot be used: {reason}"):
        extract(folders[reason], [tiny])
    with pytest.raises(ValueError, match=f"1 of 8 cuts cannot be used: {reason}"):
        pseudo_label(folders[reason], tmp_path / "out", teacher)
    assert sorted(folders[reason].iterdir()) == before


@pytest.mark.parametrize("reason", [*FORMS, "two_supervisions"])
def test_decoding_refuses_cuts_that_the_gate_drops(reason, folders):
    with pytest.raises(ValueError, match=f"1 of 8 cuts cannot be used: {reason}"):
        open_shar(folders[reason])


def test_bigram_refuses_cuts_that_the_gate_drops(folders):
    with pytest.raises(ValueError, match="two_supervisions: 1 cuts"):
        read_texts([folders["two_supervisions"]])
    assert len(read_texts([folders["good"]])) == 8


def test_texts_are_not_checked_if_they_are_not_used(folders):
    for reason in TEXTS:
        assert check_cuts(open_shards(folders[reason]), "x") == 8


def test_missing_texts_of_a_scored_set_are_counted(folders, caplog):
    assert check_cuts(open_shards(folders["empty_text"]), "x", labelled=True) == 8
    assert "x: 1 of 8 cuts have no text" in caplog.text
    caplog.clear()
    check_cuts(open_shards(folders["good"]), "x", labelled=True)
    assert not caplog.records


def test_training_and_scoring_use_the_same_text(prompts, tokenizer):
    dataset = BatchDataset(tokenizer=tokenizer)
    cut = with_text(prompts[0], "  TWO LINES\n")
    assert dataset[CutSet.from_cuts([cut])]["text"] == ["TWO LINES"]
    assert reference_words(cut) == ["TWO", "LINES"]
    with pytest.raises(ValueError, match="has 2 supervisions with text"):
        dataset[CutSet.from_cuts([with_two_supervisions(cut)])]
    with pytest.raises(ValueError, match=f"'{cut.id}' has 2 supervisions with text"):
        reference_words(with_two_supervisions(cut))
    assert get_transcript(fastcopy(cut, supervisions=[])) == ""


def test_decomposed_accents_are_scored_as_composed(prompts):
    cut = with_text(prompts[0], unicodedata.normalize("NFD", "L'ÉTÉ À NÎMES"))
    assert reference_words(cut) == ["L'ÉTÉ", "À", "NÎMES"]


def test_invisible_characters_are_replaced_in_references_as_in_tokens(
    prompts, tokenizer
):
    cut = with_text(prompts[0], "\ufeffPRESS\u200bONE \u200b")
    assert reference_words(cut) == ["PRESS", "ONE"]
    assert get_transcript(with_text(cut, "\u200b")) == ""
    for code, text in INVISIBLE.items():
        words = f"PRESS{chr(code)}ONE"
        assert tokenizer.decode(tokenizer.encode(words)) == f"PRESS{text or ''}ONE"
        assert reference_words(with_text(cut, words)) == f"PRESS{text or ''}ONE".split()


def test_remedy_for_stereo_is_not_make_shar(prompts, tmp_path):
    with pytest.raises(ValueError, match="2 channels.*MultiCut.to_mono") as caught:
        load_wave(make_stereo(prompts[0], tmp_path / "a.wav"))
    assert "make_shar" not in str(caught.value)
    with pytest.raises(ValueError, match="8000 Hz.*make_shar', which resamples"):
        load_wave(prompts[0].resample(8000))


def test_unknown_letters_of_an_unchecked_set_are_counted_and_refused(
    prompts, asterisk, tokenizer, tmp_path, caplog
):
    texts = [with_text(cut, cut.supervisions[0].text + " Ü’1") for cut in prompts]
    with pytest.raises(ValueError, match="data.max_unknown") as caught:
        train_on(write_lhotse_shar(texts, tmp_path / "many/train"), asterisk)
    assert "tokens" in str(caught.value) and "Ü (U+00DC) 8" in str(caught.value)
    long = " ".join(cut.supervisions[0].text for cut in prompts)
    few = [SimpleNamespace(lines=lambda: [_line("a", f"{long} Ü", 60.0)])]
    assert check_cuts(few, "x", tokenizer=tokenizer) == 1
    tokens = len(tokenizer.encode(f"{long} Ü"))
    assert f"x: 1 of {tokens} tokens" in caplog.text and "Ü (U+00DC) 1" in caplog.text


def _line(cut_id, text, duration):
    recording = {"id": cut_id, "sampling_rate": 16000, "duration": duration}
    return {
        "id": cut_id,
        "start": 0.0,
        "duration": duration,
        "channel": 0,
        "supervisions": [{"id": cut_id, "text": text}],
        "recording": recording,
        "type": "MonoCut",
    }


@pytest.mark.parametrize("lost", [400, 401])
def test_audio_that_ends_early_is_not_padded(prompts, lost):
    """Lhotse would pad up to 0.5 s.  Up to 25 ms may be missing."""
    cut = prompts[0]
    samples = load_wave(cut).numpy()
    buffer = io.BytesIO()
    soundfile.write(buffer, samples[:-lost], 16000, format="FLAC")
    source = AudioSource("memory", [0], buffer.getvalue())
    short = fastcopy(cut, recording=fastcopy(cut.recording, sources=[source]))
    assert short.load_audio().shape[1] == len(samples)
    if lost > 400:
        with pytest.raises(ValueError, match=f"'{cut.id}': its audio is damaged"):
            load_wave(short)
    else:
        np.testing.assert_array_equal(load_wave(short).numpy(), samples[:-lost])


def test_cuts_too_short_for_the_encoder_are_refused_without_text(tokenizer):
    shards = [SimpleNamespace(lines=lambda: [_line("a", "ONE", 0.05)])]
    assert check_cuts(shards, "x") == 1
    with pytest.raises(ValueError, match="too_short: 1 cuts.*a .5 fbank frames < 9"):
        check_cuts(shards, "x", trained=True)
