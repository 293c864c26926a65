import numpy as np
import pytest
import soundfile

from icefall_kd.corpora.audio import Clip, clip_of_file, store_clips


def tone(rate, seconds=0.5):
    t = np.arange(round(rate * seconds)) / rate
    return (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)


def test_unreadable_clip_is_reported_and_the_others_stored(tmp_path):
    soundfile.write(tmp_path / "good.wav", tone(16000), 16000)
    clips = [
        clip_of_file(tmp_path / "good.wav", "good", text="A TONE", language="en"),
        Clip("bad", b"no audio", "mp3"),
    ]
    cuts, unreadable = store_clips(clips, tmp_path / "audio", "test")
    assert [cut.id for cut in cuts] == ["good"]
    assert [id for id, _ in unreadable] == ["bad"]
    (cut,) = cuts
    assert cut.supervisions[0].text == "A TONE"
    assert cut.recording.num_samples == cut.load_audio().shape[1] == 8000


def test_clip_that_is_stored_is_not_decoded_again(tmp_path):
    def store(clip):
        cuts, unreadable = store_clips([clip], tmp_path / "audio", "test")
        assert not unreadable
        return cuts[0].load_audio(), flac.stat().st_mtime_ns

    flac = tmp_path / "audio/a.flac"
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000)
    clip = clip_of_file(tmp_path / "a.wav", "a")
    first, at = store(clip)
    assert store(clip)[1] == at
    assert store(Clip("a", (tmp_path / "a.wav").read_bytes()))[1] == at
    soundfile.write(tmp_path / "a.wav", -tone(16000), 16000)  # of the same length
    assert np.allclose(store(clip)[0], -first, atol=1e-4)
    soundfile.write(flac, np.zeros(8000, np.int16), 16000)  # of an earlier version
    assert not store(clip)[0].any()


def test_two_clips_of_one_id_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the id a"):
        store_clips([Clip("a", b""), Clip("a", b"")], tmp_path, "test")


def test_corpus_of_unreadable_clips_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no clip is readable"):
        store_clips([Clip("a", b"x", "mp3")], tmp_path, "test")
