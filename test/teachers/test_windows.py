import pytest
import torch

from icefall_kd.teachers.windows import (
    batch_pieces,
    cut_pieces,
    gather,
    padded_samples,
    stitch,
    windows,
)


@pytest.mark.parametrize("seconds", [0.01, 1, 29.99, 30, 30.01, 58, 60, 86.5, 1000])
def test_windows_cover_everything_once_with_overlaps_of_2_s(seconds):
    total = int(seconds * 16000)
    spans = windows(total)
    assert spans[0][0] == 0 and spans[-1][1] == total
    assert all(0 < end - start <= 30 * 16000 for start, end in spans)
    for (_, end), (start, _) in zip(spans, spans[1:]):
        assert end - start == 2 * 16000


@pytest.mark.parametrize("equal", [False, True])
def test_batches_hold_every_piece_once_within_the_limit(equal):
    generator = torch.Generator().manual_seed(0)
    lens = torch.randint(1, 100, (200,), generator=generator)
    pieces = cut_pieces(lens, window=60, overlap=20)
    batches = batch_pieces(pieces, lambda p: p.samples, 150, equal)
    assert sorted(map(repr, sum(batches, []))) == sorted(map(repr, pieces))
    for batch in batches:
        lengths = {p.samples for p in batch}
        assert len(batch) * max(lengths) <= 150
        assert max(lengths) <= (1.0 if equal else 1.25) * min(lengths)
    assert max(len(batch) for batch in batches) > 1


def test_a_piece_beyond_the_limit_is_a_batch_of_its_own():
    pieces = cut_pieces(torch.tensor([50, 40, 50]))
    batches = batch_pieces(pieces, lambda p: p.samples, 10)
    assert [len(batch) for batch in batches] == [1, 1, 1]


def test_frames_that_are_cut_and_stitched_are_the_audio_again():
    """A model whose frame is the mean of its 10 samples."""
    lens = torch.tensor([777, 60, 1000, 5])
    waves = torch.randn(4, 1000)
    expected = torch.zeros(4, 100, 1)
    out = torch.zeros(4, 100, 1)
    for row, n in enumerate(lens.tolist()):
        waves[row, n:] = 0
        expected[row, :, 0] = waves[row].reshape(100, 10).mean(dim=1)
    pieces = cut_pieces(lens, window=200, overlap=40)
    assert len(pieces) > 8
    for batch in batch_pieces(pieces, lambda p: p.samples, 600):
        audio = gather(waves, batch, 200)
        frames = audio.reshape(len(batch), 20, 10).mean(dim=2, keepdim=True)
        valid = [-(-p.samples // 10) for p in batch]
        stitch(frames, valid, batch, 10, out, overlap=40)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    "samples, expected", [(1, 24000), (8000, 24000), (8001, 32000), (479999, 480000)]
)
def test_a_clip_is_padded_by_its_context_up_to_the_bucket(samples, expected):
    assert padded_samples(samples, 1.0, 0.5, 320) == expected


def test_a_bucket_below_a_frame_is_a_frame():
    assert padded_samples(321, 0.0, 0.001, 320) == 640
