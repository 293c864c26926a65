"""Long audio: position of the splits, recognised words, and memory."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import Recording

from icefall_kd.data.cuts import load_blocks, load_wave
from icefall_kd.decoding import DecodeOptions
from icefall_kd.recognition.long_audio import FRAME, OVERLAP, split_windows
from icefall_kd.recognition.recognise import recognise

SHORT = DecodeOptions(unk_id=2, max_utterance=10.0)


def store(folder, wave, id="long"):
    """Write a wave to a file; return its cut."""
    path = folder / f"{id}.wav"
    soundfile.write(path, wave, 16000, subtype="FLOAT")
    return Recording.from_file(path, recording_id=id).to_cut()


def in_blocks(wave, size):
    return (wave[i : i + size] for i in range(0, len(wave), size))


@pytest.mark.parametrize("size", [1000, 16000, 10**9])
def test_windows_are_split_in_the_middle_of_pauses(parts, size):
    wave = np.concatenate(parts)
    windows = list(split_windows(in_blocks(wave, size), 10.0))
    assert [w.start for w in windows] == [0, 175, 350, 525, 700]
    for window, part in zip(windows, parts):
        np.testing.assert_array_equal(window.wave, part)
        assert not window.is_overlapped


def test_utterance_up_to_limit_is_one_window(parts):
    wave = np.concatenate(parts)[:160000]
    (window,) = split_windows([wave], 10.0)
    assert len(window.wave) == 160000 and not window.is_overlapped
    assert len(list(split_windows([np.append(wave, wave[:1])], 10.0))) == 2
    (empty,) = split_windows([], 10.0)
    assert (len(empty.wave), empty.start) == (0, 0)


def test_windows_without_pause_overlap_and_share_words(parts):
    noise = np.random.default_rng(0).normal(0, 0.1, 640 * 1000).astype(np.float32)
    windows = list(split_windows([noise], 10.0))
    assert len(windows) > 4
    for window, after in zip(windows, windows[1:]):
        assert window.is_overlapped and after.is_overlapped
        assert window.last == after.first  # each frame has one window
        assert after.start * FRAME == after.first * FRAME - OVERLAP
        end = window.start * FRAME + len(window.wave)
        assert end == window.last * FRAME + OVERLAP
        assert len(window.wave) <= 160000
        np.testing.assert_array_equal(window.wave, noise[window.start * FRAME : end])
    # words of two tokens in neighbouring frames, at all positions
    times = list(range(0, 998, 3))
    emitted = [t for time in times for t in (time, time + 1)]
    found = []
    for window in windows:
        frames = range(window.start, window.start + len(window.wave) // FRAME)
        here = [
            i for i, t in enumerate(emitted) if t in frames and emitted[i ^ 1] in frames
        ]
        pieces = ["o" if i % 2 else "\u2581n" for i in here]
        selected, placed = window.select_tokens(
            pieces, [emitted[i] - frames[0] for i in here]
        )
        assert [emitted[here[i]] for i in selected] == placed
        found += placed
    assert found == emitted


def test_long_cuts_have_words_and_frames_of_their_parts(
    student, parts, tokenizer, tmp_path
):
    cuts = [store(tmp_path, part, f"part{i}") for i, part in enumerate(parts)]
    long = store(tmp_path, np.concatenate(parts))
    short, _ = recognise(student, cuts, tokenizer, SHORT)
    for max_duration in (0.0, 20.0):
        both, rtf = recognise(
            student, [long, cuts[0]], tokenizer, SHORT, max_duration=max_duration
        )
        assert [r.cut_id for r in both] == ["long", "part0"]
        assert 0 < rtf < 10
        if not max_duration:  # in a batch, padding changes the scores slightly
            assert both[0].hyp == [word for r in short for word in r.hyp]
            assert both[0].frames == [
                175 * i + frame for i, r in enumerate(short) for frame in r.frames
            ]
        assert len(both[0].hyp) == len(both[0].frames) > 40
        assert both[1].hyp == short[0].hyp


def test_blocks_of_long_cut_are_its_samples(parts, tmp_path):
    cut = store(tmp_path, np.concatenate(parts * 5)[:2_000_001])  # 125 s
    blocks = list(load_blocks(cut))
    assert [len(block) for block in blocks] == [960000, 960000, 80001]
    assert torch.equal(torch.cat(blocks), load_wave(cut))


def peak_memory(function):
    """Return the increase of resident memory while ``function`` runs, in MiB."""
    before = read_status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    function()
    return read_status("VmHWM") - before


def read_status(name):
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[1]) / 1024


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux"
)
def test_memory_does_not_grow_with_duration(student, parts, tokenizer, tmp_path):
    speech = np.concatenate(parts)
    short = store(tmp_path, speech[: 30 * 16000], "short")
    long = store(tmp_path, np.tile(speech, 4)[: 120 * 16000])

    def recognise_cut(cut):
        recognise(student, [cut], tokenizer, DecodeOptions(unk_id=2))

    recognise_cut(short)  # allocates the memory that later calls use again
    bound = max(peak_memory(lambda: recognise_cut(short)), 50.0)
    assert peak_memory(lambda: recognise_cut(long)) < 2 * bound


def test_window_shorter_than_its_context_is_refused():
    with pytest.raises(ValueError, match="at least 5 s, got 3 s"):
        DecodeOptions(max_utterance=3.0)
    with pytest.raises(ValueError, match="at least 5 s"):
        DecodeOptions(max_utterance=float("nan"))
