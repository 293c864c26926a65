"""Streaming: number and size of steps, tail padding, batches of streams."""

import pytest
import torch
from students import VOCAB_SIZE, search_options

from icefall_kd.data.features import compute_fbank, num_frames
from icefall_kd.decoding import DECODERS, DecodeOptions
from icefall_kd.decoding.streaming import (
    decode_streaming,
    encode_chunks,
    hop_frames,
    num_steps,
    pad_tail,
    tail_padding,
    window_frames,
)

CHUNKS = [16, 32, 64]


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_steps_run_while_more_than_a_window_is_left(chunk_size):
    for frames in range(400):
        steps, read = 0, 0
        while read + window_frames(chunk_size) < frames:
            steps, read = steps + 1, read + hop_frames(chunk_size)
        assert num_steps(frames, chunk_size) == steps


@pytest.mark.parametrize(
    "chunk_size, window, tail", [(16, 45, 0.75), (32, 77, 1.07), (64, 141, 1.71)]
)
def test_tail_padding_depends_on_chunk_size(chunk_size, window, tail):
    assert window_frames(chunk_size) == window
    assert tail_padding(chunk_size) == tail


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_steps_read_each_frame_before_the_padding(chunk_size):
    for samples in range(80, 40000, 77):
        padded = pad_tail(torch.ones(samples), chunk_size)
        assert padded[samples:].abs().max() == 0
        steps = num_steps(num_frames(len(padded)), chunk_size)
        assert steps * hop_frames(chunk_size) >= num_frames(samples)


def test_fbank_of_padding_is_floor_of_logarithm():
    features = compute_fbank([pad_tail(torch.randn(8000), 16)])[0]
    assert features[-20:].allclose(torch.tensor(-15.9424), atol=1e-3)


@pytest.mark.parametrize("method", sorted(DECODERS))
@pytest.mark.parametrize("chunk_size", [16, 32])
def test_streams_in_a_batch_equal_single_streams(student, waves, method, chunk_size):
    chosen = [torch.from_numpy(w) for w in list(waves.values())[:6]]
    features = compute_fbank([pad_tail(w, chunk_size) for w in chosen])
    options = search_options(method, VOCAB_SIZE, unk_id=2)
    together = decode_streaming(student, features, chunk_size, 64, options)
    assert sum(len(hyp.tokens) for hyp in together) > 100
    for f, hyp in zip(features, together):
        alone = decode_streaming(student, [f], chunk_size, 64, options)[0]
        assert (hyp.tokens, hyp.timestamps) == (alone.tokens, alone.timestamps)
        assert hyp.score == pytest.approx(alone.score, abs=0.01)


@torch.no_grad()
def test_chunks_equal_masked_full_pass(student, waves):
    wave = torch.from_numpy(max(waves.values(), key=len))
    features = compute_fbank([wave])[0]
    chunks = encode_chunks(student, [features], 16, 64)
    streamed = torch.cat([encoder_out[0] for encoder_out, _ in chunks])
    student.encoder.set_chunk(16, 64)
    full, _ = student.forward_encoder(features[None], torch.tensor([len(features)]))
    assert len(streamed) > 100
    # Random weights give larger scores than trained ones, and larger rounding errors.
    assert torch.allclose(streamed, full[0, : len(streamed)], atol=1e-3)


def test_stream_shorter_than_a_window_is_empty(student):
    short, long = torch.randn(45, 80), torch.randn(120, 80)
    hyps = decode_streaming(student, [short, long], 16, 64, DecodeOptions())
    assert hyps[0].tokens == []
    assert hyps[1].tokens != []


@pytest.mark.parametrize("chunk_size", [-1, 0, 15])
def test_invalid_chunk_size_is_refused(student, chunk_size):
    with pytest.raises(ValueError, match=f"chunk_size.*{chunk_size}"):
        decode_streaming(
            student, [torch.randn(90, 80)], chunk_size, 64, DecodeOptions()
        )


def test_no_streams_are_refused(student):
    with pytest.raises(ValueError, match="no stream"):
        decode_streaming(student, [], 16, 64, DecodeOptions())
