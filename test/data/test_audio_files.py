"""Reading audio files of many formats, complete, truncated and damaged."""

import struct

import numpy as np
import pytest
import soundfile
from encoded_audio import encoded

from icefall_kd.data.audio_files import AudioError, decode, read_blocks


def tone(rate, seconds=0.5):
    """Return a sine of 440 Hz, (S,) float32."""
    t = np.arange(round(rate * seconds)) / rate
    return (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)


@pytest.mark.parametrize(
    "rate, suffix", [(11025, "ogg"), (44100, "wav"), (16000, "flac")]
)
def test_any_rate_becomes_16_khz_with_its_duration(tmp_path, rate, suffix):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(rate), rate)
    samples = decode(path)
    assert samples.dtype == np.int16
    assert abs(samples.size / 16000 - 0.5) < 0.03  # Ogg stores complete blocks
    # 440 Hz is still 440 Hz
    peak = np.abs(np.fft.rfft(samples)).argmax() * 16000 / samples.size
    assert abs(peak - 440) < 5


def test_flac_at_16_khz_keeps_every_sample(tmp_path):
    path = tmp_path / "a.flac"
    samples = np.random.default_rng(0).integers(-3000, 3000, 8000, dtype=np.int16)
    soundfile.write(path, samples, 16000)
    assert np.array_equal(decode(path), samples)


@pytest.mark.parametrize("rate", [16000, 8000])
def test_channels_are_averaged(tmp_path, rate):
    left, right = tone(rate), tone(rate)[::-1] / 2
    for name, wave in [("both", np.stack([left, right], axis=1)), ("left", left)]:
        soundfile.write(tmp_path / f"{name}.wav", wave, rate, subtype="FLOAT")
    soundfile.write(tmp_path / "right.wav", right, rate, subtype="FLOAT")
    both, first, second = (
        np.concatenate(list(read_blocks(tmp_path / f"{name}.wav")))
        for name in ("both", "left", "right")
    )
    np.testing.assert_allclose(both, (first + second) / 2, atol=1e-6)


@pytest.mark.parametrize(
    "name, codec", [("a.m4a", "aac"), ("a.mp4", "aac"), ("a.webm", "libopus")]
)
def test_compressed_containers_are_read_with_their_duration(tmp_path, name, codec):
    samples = decode(encoded(tmp_path / name, codec, tone(16000, 2.0)))
    assert abs(samples.size / 16000 - 2.0) < 0.1
    peak = np.abs(np.fft.rfft(samples)).argmax() * 16000 / samples.size
    assert abs(peak - 440) < 5


def test_blocks_are_short_and_their_sum_is_the_file(tmp_path):
    wave = np.tile(tone(16000), 10)
    soundfile.write(tmp_path / "a.flac", wave, 16000)
    blocks = list(read_blocks(tmp_path / "a.flac"))
    assert max(map(len, blocks)) < 2 * 16000 and len(blocks) > 2
    assert all(block.dtype == np.float32 for block in blocks)
    expected = soundfile.read(tmp_path / "a.flac", dtype="float32")[0]
    np.testing.assert_array_equal(np.concatenate(blocks), expected)


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.wav", {}),
        ("a.wav", {"subtype": "FLOAT"}),
        ("a.wav", {"subtype": "PCM_24", "format": "WAVEX"}),
        ("a.flac", {}),
        ("a.mp3", {}),
        ("a.aiff", {}),
        ("a.mka", None),
        ("a.webm", None),
    ],
)
def test_truncated_files_are_refused_with_both_durations(tmp_path, name, options):
    wave, path = tone(16000, 5.0), tmp_path / name
    if options is None:
        encoded(path, "libopus", wave)
    else:
        soundfile.write(path, wave, 16000, **options)
    assert abs(decode(path).size / 16000 - 5.0) < 0.1
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    with pytest.raises(AudioError, match=r"truncated.* [23]\.\d\d s .*5\.0\d s"):
        decode(path)
    with pytest.raises(AudioError, match="truncated"):
        decode(path.read_bytes())


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_truncated_ogg_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).normal(0, 0.1, 5 * 16000).astype(np.float32)
    if suffix == "ogg":
        soundfile.write(path, noise, 16000)
    else:
        encoded(path, "libopus", noise)
    assert abs(decode(path).size / 16000 - 5.0) < 0.1
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    with pytest.raises(
        AudioError, match=r"truncated: .* within a page after [0-4]\.\d"
    ):
        decode(path)


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_wav_of_undeclared_length_is_read_completely(tmp_path, size):
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000)
    data = (tmp_path / "a.wav").read_bytes()
    assert data[36:40] == b"data"
    piped = data[:40] + struct.pack("<I", size) + data[44:]
    np.testing.assert_array_equal(decode(piped), decode(data))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("rate", [16000, 8000])
def test_samples_that_are_not_finite_are_refused(tmp_path, value, rate):
    wave = tone(rate)
    wave[-100] = value
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"NaN or infinite samples near 0\.\d\d s"):
        decode(tmp_path / "a.wav")


def test_file_without_audio_is_refused(tmp_path):
    (tmp_path / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n\n")
    with pytest.raises(AudioError, match="no audio stream"):
        decode(tmp_path / "a.srt")
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16000)
    with pytest.raises(AudioError, match="no samples"):
        decode(tmp_path / "a.wav")


@pytest.mark.parametrize("source", [b"", b"this is no audio", b"\0" * 1000])
def test_bytes_that_are_not_audio_are_refused(source):
    with pytest.raises(ValueError, match="cannot be decoded|has no samples"):
        decode(source, "mp3")
