"""Windows over long utterances, and batches of pieces."""

import pytest
import torch

from icefall_kd.teachers.windows import (
    batch_pieces,
    count_padded_samples,
    gather_audio,
    split_pieces,
    split_windows,
    stitch_frames,
)


@pytest.mark.parametrize("seconds", [0.01, 1, 29.99, 30, 30.01, 58, 60, 86.5, 1000])
def test_windows_cover_the_audio_with_overlaps_of_2_s(seconds):
    total = int(seconds * 16000)
    spans = split_windows(total)
    assert spans[0][0] == 0 and spans[-1][1] == total
    assert all(0 < end - start <= 30 * 16000 for start, end in spans)
    for (_, end), (start, _) in zip(spans, spans[1:]):
        assert end - start == 2 * 16000


@pytest.mark.parametrize("equal", [False, True])
def test_batches_hold_every_piece_once_within_the_limit(equal):
    generator = torch.Generator().manual_seed(0)
    lens = torch.randint(1, 100, (200,), generator=generator)
    pieces = split_pieces(lens, window=60, overlap=20)
    batches = batch_pieces(pieces, lambda p: p.samples, 150, equal)
    assert sorted(map(repr, sum(batches, []))) == sorted(map(repr, pieces))
    for batch in batches:
        lengths = {p.samples for p in batch}
        assert len(batch) * max(lengths) <= 150
        assert max(lengths) <= (1.0 if equal else 1.25) * min(lengths)
    assert max(len(batch) for batch in batches) > 1


def test_a_piece_above_the_limit_is_a_batch():
    pieces = split_pieces(torch.tensor([50, 40, 50]))
    batches = batch_pieces(pieces, lambda p: p.samples, 10)
    assert [len(batch) for batch in batches] == [1, 1, 1]


def test_frames_of_pieces_are_stitched_to_those_of_the_utterance():
    """The model is a mean: a frame is the mean of 10 samples."""
    lens = torch.tensor([777, 60, 1000, 5])
    waves = torch.randn(4, 1000)
    expected = torch.zeros(4, 100, 1)
    out = torch.zeros(4, 100, 1)
    for row, n in enumerate(lens.tolist()):
        waves[row, n:] = 0
        expected[row, :, 0] = waves[row].reshape(100, 10).mean(dim=1)
    pieces = split_pieces(lens, window=200, overlap=40)
    assert len(pieces) > 8
    for batch in batch_pieces(pieces, lambda p: p.samples, 600):
        audio = gather_audio(waves, batch, 200)
        frames = audio.reshape(len(batch), 20, 10).mean(dim=2, keepdim=True)
        valid = [-(-p.samples // 10) for p in batch]
        stitch_frames(frames, valid, batch, 10, out, overlap=40)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    "samples, expected", [(1, 24000), (8000, 24000), (8001, 32000), (479999, 480000)]
)
def test_a_clip_is_padded_by_its_context_up_to_the_bucket(samples, expected):
    assert count_padded_samples(samples, 1.0, 0.5, 320) == expected


def test_a_bucket_shorter_than_a_frame_is_a_frame():
    assert count_padded_samples(321, 0.0, 0.001, 320) == 640
