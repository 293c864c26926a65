"""Emission delay and latency, and the audio that a step needs."""

import kaldi_native_fbank as knf
import pytest
from lhotse.supervision import AlignmentItem

from icefall_kd import SAMPLE_RATE
from icefall_kd.decoding.streaming import hop_frames, step_time, window_frames
from icefall_kd.recognition.delay import (
    Delays,
    delay_metrics,
    frame_time,
    measure_delays,
)
from icefall_kd.recognition.scoring import Recognition

WORDS = "PRESS ONE OR TWO".split()
TIMES = {
    "a": [AlignmentItem(w, 0.2 + 0.5 * i, 0.3) for i, w in enumerate(WORDS)],
    "b": [AlignmentItem("GOODBYE", 0.1, 0.515)],
}


@pytest.fixture
def found():
    """Recognitions in which ONE, TWO and GOODBYE are correct."""
    return [
        Recognition("a", WORDS, "UH DRESS ONE TWO".split(), [2, 13, 25, 49]),
        Recognition("b", ["GOODBYE"], ["GOODBYE"], [7]),
    ]


def test_emission_delay_ends_with_the_frame(found):
    delays = measure_delays(found, TIMES)
    # Frames 25, 49 and 7 end at 1.075, 2.035 and 0.355 s.
    assert delays.emission == pytest.approx([0.075, 0.035, -0.26])
    assert delays.latency is None


def test_latency_ends_with_the_chunk(found):
    delays = measure_delays(found, TIMES, chunk_size=16)
    assert delays.emission == measure_delays(found, TIMES).emission
    # The frames are in steps 3, 6 and 0 of eight frames each.
    assert delays.latency == pytest.approx([0.4275, 0.3875, -0.1475])


@pytest.mark.parametrize("chunk_size", [16, 32, 64])
def test_step_time_is_exact_to_one_sample(chunk_size):
    """sherpa-onnx starts a step when it has more fbank frames than the step reads."""
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = 80
    for step in (0, 1, 5):
        fbank = knf.OnlineFbank(options)
        samples = round(step_time(step, chunk_size) * SAMPLE_RATE)
        needed = step * hop_frames(chunk_size) + window_frames(chunk_size)
        fbank.accept_waveform(SAMPLE_RATE, [0.1] * (samples - 1))
        assert not fbank.num_frames_ready > needed
        fbank.accept_waveform(SAMPLE_RATE, [0.1])
        assert fbank.num_frames_ready > needed


def test_all_frames_of_a_chunk_have_the_time_of_its_step():
    times = [frame_time(frame, 32) for frame in range(48)]
    assert times == [step_time(step, 32) for step in range(3) for _ in range(16)]
    assert times[0] == pytest.approx(0.7875)
    assert times[16] - times[0] == pytest.approx(0.64)


def test_metrics_are_mean_and_percentile_in_ms():
    tenths = [i / 10 for i in range(11)]
    assert delay_metrics(Delays(tenths, [1.0] * 11)) == {
        "emission_delay_mean_ms": 500.0,
        "emission_delay_p90_ms": 900.0,
        "latency_mean_ms": 1000.0,
        "latency_p90_ms": 1000.0,
        "delay_words": 11,
    }
    assert delay_metrics(Delays([])) == {
        "emission_delay_mean_ms": None,
        "emission_delay_p90_ms": None,
        "delay_words": 0,
    }


@pytest.mark.parametrize(
    "recognition",
    [
        Recognition("b", ["GOODBYE"], ["GOODBYE"]),  # without frames
        Recognition("b", ["GOOD", "BYE"], ["GOOD"], [3]),
        Recognition("c", ["GOODBYE"], ["GOODBYE"], [3]),
    ],
)
def test_recognition_without_times_is_reported(recognition):
    with pytest.raises(ValueError, match=f"^{recognition.cut_id}: .* align and decode"):
        measure_delays([recognition], TIMES)
