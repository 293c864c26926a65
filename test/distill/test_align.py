"""Alignment of teacher frames to student frames by time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icefall_kd import ENCODER_SHIFT
from icefall_kd.distill.align import ENCODER_FIRST_CENTRE, align_frames

SHIFTS = st.sampled_from([0.01, 0.02, 0.04])


def student_len(duration):
    """Frames of the student for so many seconds: its own formula."""
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
def test_length_is_the_students_and_a_constant_stays(duration, shift, extra):
    frames = max(1, round(duration / shift) + extra)
    out_lens = torch.tensor([student_len(duration)])
    x = torch.full((1, frames, 3), 2.5)
    y = align_frames(x, torch.tensor([frames]), shift, out_lens)
    assert y.shape == (1, int(out_lens), 3)
    torch.testing.assert_close(y, torch.full_like(y, 2.5))


@settings(max_examples=200, deadline=None)
@given(st.floats(0.12, 35.0), SHIFTS, st.floats(0.0, 1.0))
def test_a_click_lands_within_one_student_frame(duration, shift, where):
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
def test_equals_the_slow_reference(shift):
    torch.manual_seed(0)
    for duration in (0.12, 0.31, 1.0, 2.37):
        x = torch.randn(round(duration / shift), 4)
        num_out = student_len(duration)
        lens, out_lens = torch.tensor([len(x)]), torch.tensor([num_out])
        y = align_frames(x.unsqueeze(0), lens, shift, out_lens)[0]
        torch.testing.assert_close(y, slow_align(x, shift, num_out))


def test_padding_of_the_batch_changes_nothing():
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
