"""Storing the audio of a corpus as flac files."""

import numpy as np
import pytest
import soundfile

from icefall_kd.corpora.audio import AudioClip, store_clips


def tone(rate, seconds=0.5):
    """Return a sine of 440 Hz, (S,) float32."""
    t = np.arange(round(rate * seconds)) / rate
    return (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)


def test_unreadable_clip_is_logged_and_the_others_are_stored(tmp_path, caplog):
    soundfile.write(tmp_path / "good.wav", tone(16000), 16000)
    clips = [
        AudioClip("good", tmp_path / "good.wav", text="A TONE", language="en"),
        AudioClip("bad", b"no audio", "mp3"),
    ]
    (cut,) = store_clips(clips, tmp_path / "audio")
    assert cut.id == "good" and cut.custom == {"language": "en"}
    assert cut.supervisions[0].text == "A TONE"
    assert cut.recording.num_samples == cut.load_audio().shape[1] == 8000
    assert "bad cannot be decoded as mp3" in caplog.text


def test_stored_clip_is_decoded_again_only_if_its_source_changed(tmp_path):
    def store(clip):
        (cut,) = store_clips([clip], tmp_path / "audio")
        return cut.load_audio(), flac.stat().st_mtime_ns

    flac, source = tmp_path / "audio/a.flac", tmp_path / "a.wav"
    soundfile.write(source, tone(16000), 16000)
    clip = AudioClip("a", source)
    first, written = store(clip)
    assert store(clip)[1] == written
    assert store(AudioClip("a", source.read_bytes()))[1] == written
    soundfile.write(source, -tone(16000), 16000)  # the same length
    assert np.allclose(store(clip)[0], -first, atol=1e-4)
    soundfile.write(flac, np.zeros(8000, np.int16), 16000)  # has no comment
    assert not store(clip)[0].any()


def test_clips_with_equal_ids_are_refused(tmp_path):
    with pytest.raises(ValueError, match="id a"):
        store_clips([AudioClip("a", b""), AudioClip("a", b"")], tmp_path)


def test_corpus_without_a_readable_clip_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none of 1 clips is readable.*a cannot be"):
        store_clips([AudioClip("a", b"x", "mp3")], tmp_path)
