"""Run make_shar and train_bpe on manifests with faults."""

import importlib
import sys
import unicodedata

import numpy as np
import pytest
import soundfile
import torch
from dummies import noise_cuts
from lhotse import CutSet, MonoCut, Recording, RecordingSet
from lhotse.utils import fastcopy

from icefall_kd.core.files import read_json
from icefall_kd.data.cuts import load_wave
from icefall_kd.data.tokens import Tokenizer, train_bpe, write_lang
from icefall_kd.fields.reader import open_shar


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs ``bin.<verb>`` on a manifest of ``items``."""
    monkeypatch.chdir(tmp_path)

    def run(verb, items, *options):
        if not isinstance(items, RecordingSet):
            items = CutSet.from_cuts(items)
        items.to_file(tmp_path / "m.jsonl.gz")
        arguments = ["--manifest", "m.jsonl.gz", "--output", "shar/a", *options]
        monkeypatch.setattr(sys, "argv", [verb, *map(str, arguments)])
        importlib.import_module(f"icefall_kd.bin.{verb}").main()

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def reasons(folder):
    """Return reason -> ids of the cuts dropped from shar/a."""
    found = {}
    for drop in read_json(folder / "shar/a.gate.json")["cuts"]:
        found.setdefault(drop["reason"], []).append(drop["cut_id"])
    return found


def test_cuts_outside_their_recording_are_dropped_not_padded(run, tmp_path):
    cuts = list(noise_cuts(tmp_path, [2.0, 2.0, 2.0, 2.0]))
    cuts[0] = fastcopy(cuts[0], id="over", duration=2.5)
    cuts[1] = fastcopy(cuts[1], id="after", start=2.2, duration=1.0)
    cuts[2] = fastcopy(cuts[2], id="padded").pad(duration=3.0)
    features_alone = MonoCut("silent", 0.0, 2.0, 0)
    run("make_shar", [*cuts, features_alone], "--speeds", "1.0", "1.1")
    assert {r: sorted(ids) for r, ids in reasons(tmp_path).items()} == {
        "outside_recording": ["after", "after_sp1.1", "over", "over_sp1.1"],
        "mixed_cut": [cuts[2].id],
        "unreadable": ["silent"],
    }
    kept = {c.id: c for c in open_shar(tmp_path / "shar/a")}
    assert sorted(kept) == ["noise-3", "noise-3_sp1.1"]
    there = cuts[3].load_audio()
    np.testing.assert_allclose(kept["noise-3"].load_audio(), there, atol=2**-15)


def test_every_cut_of_a_kaldi_import_is_kept(run, tmp_path):
    """Lhotse truncates 2.046 s to 2.045 s; a file reco2dur may round to 10 ms."""
    from lhotse.kaldi import load_kaldi_data_dir

    seconds = [2.046, 1.999, 3.017]
    list(noise_cuts(tmp_path, seconds))
    kaldi = tmp_path / "kaldi"
    kaldi.mkdir()
    lines = [f"u{n} {tmp_path}/noise-{n}.flac\n" for n in range(3)]
    (kaldi / "wav.scp").write_text("".join(lines))
    lengths = {}
    for name, digits in (("floored", None), ("rounded", 2)):
        if digits:
            lines = [f"u{n} {round(s, digits)}\n" for n, s in enumerate(seconds)]
            (kaldi / "reco2dur").write_text("".join(lines))
        recordings, *_ = load_kaldi_data_dir(kaldi, 16000)
        lengths[name] = [r.num_samples for r in recordings]
        run("make_shar", [r.to_cut() for r in recordings], "--output", f"shar/{name}")
        kept = {c.recording.id: c for c in open_shar(tmp_path / f"shar/{name}")}
        for n, there in enumerate(seconds):
            audio = soundfile.read(tmp_path / f"noise-{n}.flac", dtype="float32")[0]
            found = kept[f"u{n}"].load_audio()[0]
            assert len(found) == min(lengths[name][n], round(there * 16000))
            np.testing.assert_allclose(found, audio[: len(found)], atol=2**-15)
    assert lengths == {
        "floored": [32720, 31984, 48272],
        "rounded": [32800, 32000, 48320],
    }


@pytest.mark.parametrize("verb", ["make_shar", "train_bpe"])
def test_empty_manifest_is_refused(run, tmp_path, verb, capsys):
    with pytest.raises(SystemExit, match="m.jsonl.gz: has no cuts"):
        run(verb, [])
    assert not (tmp_path / "shar").exists()


TEXTS = ["ONE TWO THREE FOUR", "FIVE SIX SEVEN EIGHT", "NINE TEN ELEVEN TWELVE"] * 9


@pytest.fixture(scope="module")
def bpe_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lang")
    write_lang(train_bpe(TEXTS, 22), folder)
    return folder / "bpe.model"


def labelled(folder, texts):
    return list(noise_cuts(folder, [4.0] * len(texts), texts))


def test_unknown_letters_are_counted_and_refused(run, tmp_path, bpe_model):
    texts = [*TEXTS[:6], "ONE 1 TWO’S", "ÜBER ONE"]
    cuts = labelled(tmp_path, texts)
    with pytest.raises(SystemExit) as ended:
        run("make_shar", cuts, "--bpe-model", bpe_model)
    line = str(ended.value)
    tokenizer = Tokenizer(bpe_model)
    tokens = [t for text in texts for t in tokenizer.encode(text)]
    unknown = tokens.count(tokenizer.unk_id)
    assert unknown == 3  # 1, ’ and ÜB
    assert f"m.jsonl.gz: {unknown} of {len(tokens)} tokens" in line
    for letter in ("1 (U+0031) 1", "’ (U+2019) 1", "Ü (U+00DC) 1", "B (U+0042) 1"):
        assert letter in line
    assert "--max-unknown" in line and "\n" not in line and "case" not in line
    assert not (tmp_path / "shar/a").exists()
    run("make_shar", cuts, "--bpe-model", bpe_model, "--max-unknown", "0.2")
    report = read_json(tmp_path / "shar/a.gate.json")
    letters = {"1": 1, "’": 1, "Ü": 1, "B": 1}
    assert report["unknown"] == {
        "tokens": len(tokens),
        "unk": unknown,
        "letters": letters,
    }
    assert report["dropped"] == 0


def test_texts_of_the_other_case_are_reported(run, tmp_path, bpe_model):
    cuts = labelled(tmp_path, [text.lower() for text in TEXTS[:3]])
    with pytest.raises(SystemExit, match="texts are lower case, tokens upper case"):
        run("make_shar", cuts, "--bpe-model", bpe_model)


def test_accents_are_composed_and_signs_are_reported(run, tmp_path, capsys):
    accented = unicodedata.normalize("NFD", "L'ÉTÉ À NÎMES")
    texts = [accented, "À 8 H.", *TEXTS[:7]]
    run("train_bpe", labelled(tmp_path, texts), "--vocab-size", 32)
    log = capsys.readouterr().err
    assert "accents (NFC) of 1 texts" in log
    assert "8 (U+0038) 1, . (U+002E) 1" in log
    run(
        "make_shar",
        labelled(tmp_path, texts),
        *("--bpe-model", "shar/a/bpe.model", "--output", "shar/b"),
    )
    found = {c.supervisions[0].text for c in open_shar(tmp_path / "shar/b")}
    assert found == {unicodedata.normalize("NFC", text) for text in texts}
    assert "L'ÉTÉ À NÎMES" in found


def test_missing_audio_is_one_line_with_the_working_directory(run, tmp_path):
    cuts = list(noise_cuts(tmp_path, [1.0] * 7))
    for cut in cuts:
        cut.recording.sources[0].source = f"elsewhere/{cut.id}.flac"
    with pytest.raises(SystemExit) as ended:
        run("make_shar", cuts)
    line = str(ended.value)
    assert "the gate drops every cut" in line and "\n" not in line
    assert "unreadable: 7 cuts" in line
    where = f"no file elsewhere/noise-0.flac in the working directory {tmp_path}"
    assert f"noise-0 ({where})" in line


def test_audio_of_another_rate_is_resampled(run, tmp_path, capsys):
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * 44100) / 44100)
    soundfile.write(tmp_path / "a.wav", 0.5 * tone, 44100)
    cut = Recording.from_file(tmp_path / "a.wav").to_cut()
    run("make_shar", [cut], "--speeds", "1.0", "0.9")
    assert "1 cuts of 44100 Hz to 16000 Hz" in capsys.readouterr().err
    for found in open_shar(tmp_path / "shar/a"):
        wave = load_wave(found).numpy()
        speed = found.custom["speed"]
        assert len(wave) == pytest.approx(32000 / speed, abs=2)
        spectrum = np.abs(np.fft.rfft(wave))
        peak = np.fft.rfftfreq(len(wave), 1 / 16000)[spectrum.argmax()]
        assert peak == pytest.approx(440 * speed, abs=2)


def test_folder_of_other_options_is_refused(run, tmp_path, capsys):
    cuts = noise_cuts(tmp_path, [1.0, 1.5])
    run("make_shar", cuts)
    capsys.readouterr()
    run("make_shar", cuts)
    assert "nothing to do" in capsys.readouterr().err
    # Equal cuts in a new manifest, with audio in another folder.
    (tmp_path / "moved").mkdir()
    run("make_shar", noise_cuts(tmp_path / "moved", [1.0, 1.5]))
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        run("make_shar", cuts, "--speeds", "1.0", "1.1")
    assert "\n" not in str(ended.value)
    assert "speeds: [1.0] -> [1.0, 1.1]); delete it" in str(ended.value)
    with pytest.raises(SystemExit, match="cuts_sha256"):
        run("make_shar", noise_cuts(tmp_path, [1.0]))
    assert len(list(open_shar(tmp_path / "shar/a"))) == 2


@pytest.mark.parametrize("verb", ["make_shar", "train_bpe"])
def test_manifest_of_recordings_is_refused(run, tmp_path, verb):
    recordings = RecordingSet.from_recordings(
        cut.recording for cut in noise_cuts(tmp_path, [1.0])
    )
    message = "has a Recording, not cuts. Remedy: 'lhotse cut simple"
    with pytest.raises(SystemExit, match=message):
        run(verb, recordings)
