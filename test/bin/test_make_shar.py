"""From a manifest of any rate to Shar, and not to one that another call made."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from dummies import noise_cuts
from lhotse import CutSet, Recording, RecordingSet

from icefall_kd.cache.reader import open_shar
from icefall_kd.data.waves import load_wave

ROOT = Path(__file__).resolve().parents[2]


def call(verb, folder, *options):
    """``bin.<verb>`` on the manifest of ``folder``."""
    arguments = ["--manifest", "m.jsonl.gz", "--output", "shar/a", *options]
    return subprocess.run(
        [sys.executable, "-m", f"icefall_kd.bin.{verb}", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def make_shar(folder, *options):
    return call("make_shar", folder, *options)


def test_audio_of_another_rate_becomes_16_khz(tmp_path):
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * 44100) / 44100)
    soundfile.write(tmp_path / "a.wav", 0.5 * tone, 44100)
    cut = Recording.from_file(tmp_path / "a.wav").to_cut()
    CutSet.from_cuts([cut]).to_file(tmp_path / "m.jsonl.gz")
    done = make_shar(tmp_path, "--speeds", "1.0", "0.9")
    assert done.returncode == 0, done.stderr
    assert "1 cuts of 44100 Hz become 16000" in done.stderr
    for found in open_shar(tmp_path / "shar/a"):
        wave = load_wave(found).numpy()
        speed = found.custom["speed"]
        assert len(wave) == pytest.approx(32000 / speed, abs=2)
        spectrum = np.abs(np.fft.rfft(wave))
        peak = np.fft.rfftfreq(len(wave), 1 / 16000)[spectrum.argmax()]
        assert peak == pytest.approx(440 * speed, abs=2)


def test_a_folder_of_other_options_is_not_taken_for_this_one(tmp_path):
    noise_cuts(tmp_path, [1.0, 1.5]).to_file(tmp_path / "m.jsonl.gz")
    first = make_shar(tmp_path)
    assert first.returncode == 0, first.stderr
    assert "nothing to do" in make_shar(tmp_path).stderr
    # The same cuts, the file written again, elsewhere the audio: nothing changed.
    (tmp_path / "moved").mkdir()
    noise_cuts(tmp_path / "moved", [1.0, 1.5]).to_file(tmp_path / "m.jsonl.gz")
    assert "nothing to do" in make_shar(tmp_path).stderr
    other = make_shar(tmp_path, "--speeds", "1.0", "1.1")
    assert other.returncode == 1 and other.stderr.count("\n") == 1
    assert "speeds: [1.0] -> [1.0, 1.1]); delete it" in other.stderr
    noise_cuts(tmp_path, [1.0]).to_file(tmp_path / "m.jsonl.gz")
    assert "cuts_sha256" in make_shar(tmp_path).stderr
    assert len(list(open_shar(tmp_path / "shar/a"))) == 2


@pytest.mark.parametrize("verb", ["make_shar", "train_bpe"])
def test_a_manifest_of_recordings_is_refused_with_the_remedy(tmp_path, verb):
    cuts = noise_cuts(tmp_path, [1.0])
    RecordingSet.from_recordings(c.recording for c in cuts).to_file(
        tmp_path / "m.jsonl.gz"
    )
    done = call(verb, tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "holds a Recording, not cuts. Remedy: lhotse cut simple" in done.stderr
