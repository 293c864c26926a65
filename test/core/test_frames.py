"""Alignment of teacher frames to student frames by time."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet, MonoCut, Recording
from lhotse.array import Array, TemporalArray
from lhotse.cut import Cut

from icefall_kd import ENCODER_SHIFT, SAMPLE_RATE
from icefall_kd.core.frames import ENCODER_FIRST_CENTRE, align_frames
from icefall_kd.data.features import num_frames
from icefall_kd.data.shar import write_shar
from icefall_kd.fields.codecs import make_codec
from icefall_kd.fields.extract import extract
from icefall_kd.fields.reader import load_field, open_shar
from icefall_kd.zipformer.subsampling import encoder_output_lens

FP16 = make_codec("fp16")
SHIFTS = st.sampled_from([0.01, 0.02, 0.04])


def student_len(duration):
    """Return the student's frames of ``duration`` seconds by its formula."""
    return ((round(duration * 100) - 7) // 2 + 1) // 2


def slow_align(x, shift, num_out):
    """Average one utterance (T, D) by overlap, one pair of frames at a time."""
    total = x.size(0) * shift
    rows = []
    for i in range(num_out):
        centre = ENCODER_FIRST_CENTRE + i * ENCODER_SHIFT
        begin, end = centre - ENCODER_SHIFT / 2, centre + ENCODER_SHIFT / 2
        begin = 0.0 if i == 0 else min(begin, max(0.0, total - ENCODER_SHIFT))
        end = max(end, begin + ENCODER_SHIFT)
        if i == num_out - 1:
            end += 2 * ENCODER_SHIFT
        end = min(end, total)
        weights = [
            max(0.0, min(end, (k + 1) * shift) - max(begin, k * shift))
            for k in range(x.size(0))
        ]
        rows.append(sum(w * v for w, v in zip(weights, x)) / sum(weights))
    return torch.stack(rows)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.12, 35.0), SHIFTS, st.integers(-2, 5))
def test_output_has_the_student_length_and_a_constant_is_unchanged(
    duration, shift, extra
):
    frames = max(1, round(duration / shift) + extra)
    out_lens = torch.tensor([student_len(duration)])
    x = torch.full((1, frames, 3), 2.5)
    y = align_frames(x, torch.tensor([frames]), shift, out_lens)
    assert y.shape == (1, int(out_lens), 3)
    torch.testing.assert_close(y, torch.full_like(y, 2.5))


@settings(max_examples=200, deadline=None)
@given(st.floats(0.12, 35.0), SHIFTS, st.floats(0.0, 1.0))
def test_a_click_is_within_one_student_frame(duration, shift, where):
    frames = max(1, round(duration / shift))
    k = min(frames - 1, int(where * frames))
    x = torch.zeros(1, frames, 1)
    x[0, k] = 1.0
    num_out = student_len(duration)
    y = align_frames(x, torch.tensor([frames]), shift, torch.tensor([num_out]))
    assert y.max() > 0
    time = (k + 0.5) * shift
    nearest = round((time - ENCODER_FIRST_CENTRE) / ENCODER_SHIFT)
    nearest = min(max(nearest, 0), num_out - 1)
    assert abs(int(y[0, :, 0].argmax()) - nearest) <= 1


@pytest.mark.parametrize("shift", [0.01, 0.02, 0.04, 0.03])
def test_alignment_equals_a_slow_reference(shift):
    torch.manual_seed(0)
    for duration in (0.12, 0.31, 1.0, 2.37):
        x = torch.randn(round(duration / shift), 4)
        num_out = student_len(duration)
        lens, out_lens = torch.tensor([len(x)]), torch.tensor([num_out])
        y = align_frames(x.unsqueeze(0), lens, shift, out_lens)[0]
        torch.testing.assert_close(y, slow_align(x, shift, num_out))


def test_padding_does_not_change_the_alignment():
    torch.manual_seed(0)
    x = torch.randn(2, 50, 4)
    lens, out_lens = torch.tensor([50, 30]), torch.tensor([23, 13])
    y = align_frames(x, lens, 0.02, out_lens)
    x[1, 30:] = 1e9
    z = align_frames(x, lens, 0.02, out_lens)
    torch.testing.assert_close(y, z)
    alone = align_frames(x[1:, :30], lens[1:], 0.02, out_lens[1:])
    torch.testing.assert_close(y[1:, :13], alone)
    assert (y[1, 13:] == 0).all()


def test_lengths_outside_the_input_are_refused():
    x = torch.zeros(1, 4, 2)
    for bad in (0, 5):
        with pytest.raises(ValueError, match="outside 1..4"):
            align_frames(x, torch.tensor([bad]), 0.02, torch.tensor([2]))
    with pytest.raises(ValueError, match="positive"):
        align_frames(x, torch.tensor([4]), 0.0, torch.tensor([2]))


def timed_cut(samples: int, shift: float) -> Cut:
    """Return a cut whose teacher frames contain the middle of their time in seconds."""
    duration = samples / SAMPLE_RATE
    frames = -(-samples // round(shift * SAMPLE_RATE))
    times = (np.arange(frames, dtype=np.float32)[:, None] + 0.5) * shift
    buffer = io.BytesIO()
    np.save(buffer, times)
    array = Array("memory_npy", "", buffer.getvalue(), list(times.shape))
    recording = Recording("a", [], SAMPLE_RATE, samples, duration, [0])
    cut = MonoCut("a", 0.0, duration, 0, recording=recording)
    cut.teacher = TemporalArray(array, 0, shift, 0.0)
    return cut


class IdentityCodec:
    """Codec that returns the stored array."""

    def decode(self, stored):
        return stored


def aligned_part(cut, offset, duration, name, codec):
    """Return the aligned target of a part of a cut, (T, W), and its frames."""
    part = cut.truncate(offset=offset, duration=duration)
    x = torch.from_numpy(load_field(part, name, codec)).unsqueeze(0)
    frames = encoder_output_lens(num_frames(part.num_samples))
    lens, shift = torch.tensor([x.size(1)]), getattr(part, name).frame_shift
    return align_frames(x, lens, shift, torch.tensor([frames]))[0], frames


@settings(max_examples=60, deadline=None)
@given(st.integers(1600, 35 * 16000), SHIFTS, st.floats(0, 1), st.floats(0, 1))
def test_any_part_of_a_cut_gets_the_frames_of_its_time(samples, shift, at, share):
    count = 1600 + int(share * (samples - 1600))
    start = int(at * (samples - count))
    offset, duration = start / SAMPLE_RATE, count / SAMPLE_RATE
    cut = timed_cut(samples, shift)
    y, frames = aligned_part(cut, offset, duration, "teacher", IdentityCodec())
    assert y.shape == (frames, 1) and frames >= 1
    centres = offset + ENCODER_FIRST_CENTRE + ENCODER_SHIFT * torch.arange(frames)
    error = (y[:, 0] - centres).abs()
    assert (error[1:-1] <= ENCODER_SHIFT / 2 + 1e-3).all()
    # The first and the last frame average up to three frames.
    assert error[0] <= ENCODER_SHIFT or frames == 1
    assert error[-1] <= 1.5 * ENCODER_SHIFT + 1e-3


@pytest.fixture(scope="module")
def clicked(asterisk, tiny, tmp_path_factory):
    """Cuts of a real prompt, without a click and with one: {seconds or None: cut}."""
    folder = tmp_path_factory.mktemp("clicks")
    prompts = open_shar(asterisk / "data/shar/test")
    cut = next(c for c in prompts if 2.5 < c.duration < 3.5)
    wave = cut.load_audio()[0]
    times = (None, 0.31, 0.77, 1.234, 1.6, 2.2)
    cuts = []
    for time in times:
        noisy = wave.copy()
        if time is not None:
            first = round(time * SAMPLE_RATE)
            noisy[first : first + 32] += 0.9 * (-1.0) ** np.arange(32)
        path = folder / f"{time}.wav"
        _write(path, noisy)
        cuts.append(Recording.from_file(path, str(time)).to_cut().with_id(str(time)))
    write_shar(CutSet.from_cuts(cuts), folder / "shar")
    extract(folder / "shar", [tiny])
    by_id = {c.id: c for c in open_shar(folder / "shar", ["whisper_tiny_en"])}
    return {time: by_id[str(time)] for time in times}


def _write(path, wave):
    import soundfile

    soundfile.write(path, np.clip(wave, -1, 1), SAMPLE_RATE, subtype="FLOAT")


@pytest.mark.parametrize("offset", [0.0, 0.13, 0.25])
def test_a_stored_whisper_field_has_the_click_at_its_time(clicked, offset):
    plain = clicked[None]
    for time, cut in clicked.items():
        if time is None:
            continue
        with_click, without = (
            aligned_part(c, offset, plain.duration - offset, "whisper_tiny_en", FP16)[0]
            for c in (cut, plain)
        )
        reaction = (with_click - without).norm(dim=1)
        found = offset + ENCODER_FIRST_CENTRE + ENCODER_SHIFT * int(reaction.argmax())
        assert abs(found - time) <= ENCODER_SHIFT, (time, found)
