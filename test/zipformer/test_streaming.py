"""Streaming, compared with a pass over all frames with a chunk mask."""

import pytest
import torch

from icefall_kd.zipformer.streaming import (
    get_streaming_chunk,
    hop_frames,
    init_states,
    state_batch_dims,
    streaming_forward,
    window_frames,
)

CAUSAL = dict(causal=True, chunk_size=(8,), left_context_frames=(16,))


@torch.no_grad()
def stream(embed, encoder, x, states):
    """Encode the complete windows of ``x``; return the frames and the last states."""
    chunk_size, _ = get_streaming_chunk(encoder)
    parts = []
    for start in range(
        0, x.shape[1] - window_frames(chunk_size) + 1, hop_frames(chunk_size)
    ):
        window = x[:, start : start + window_frames(chunk_size)]
        y, lens, states = streaming_forward(embed, encoder, window, states)
        assert lens.tolist() == [chunk_size // 2] * len(x)
        parts.append(y)
    return torch.cat(parts, dim=1), states


@pytest.mark.parametrize(
    "chunk_size, left_context, factors",
    [
        (4, 4, (1, 4, 2)),
        (8, 16, (1, 2, 4)),
        (8, 40, (2, 8, 1)),  # one frame for each chunk in the slowest stack
        (16, 32, (1, 4, 2)),
        (32, 64, (4, 2, 1)),
    ],
)
def test_chunks_equal_the_masked_full_pass(
    make_encoder, chunk_size, left_context, factors
):
    embed, encoder = make_encoder(
        seed=chunk_size,
        downsampling_factor=factors,
        causal=True,
        chunk_size=(chunk_size,),
        left_context_frames=(left_context,),
    )
    num_frames = hop_frames(chunk_size) * max(5, 96 // chunk_size) + 13
    x = torch.randn(2, num_frames, 80)
    lens = torch.full((2,), num_frames)
    with torch.no_grad():
        full, out = embed(x, lens)
        full, _, _ = encoder(full, out)
    y, _ = stream(embed, encoder, x, init_states(embed, encoder, 2))
    assert y.shape[1] >= 5 * chunk_size // 2
    torch.testing.assert_close(y, full[:, : y.shape[1]], atol=2e-5, rtol=2e-5)


def test_streams_of_a_batch_are_independent(make_encoder):
    embed, encoder = make_encoder(**CAUSAL)
    a, b = torch.randn(1, 93, 80), torch.randn(1, 61, 80)
    start = init_states(embed, encoder, 1)
    alone_a, _ = stream(embed, encoder, a, start)
    first, states_a = stream(embed, encoder, a[:, :61], start)
    alone_b, _ = stream(embed, encoder, b, start)
    # b joins after three chunks of a.
    dims = state_batch_dims(len(start))
    states = [torch.cat(pair, dim) for *pair, dim in zip(states_a, start, dims)]
    y, states = stream(embed, encoder, torch.cat([a[:, 48:93], b[:, :45]]), states)
    torch.testing.assert_close(y[:1], alone_a[:, 12:20], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y[1:], alone_b[:, :8], atol=1e-5, rtol=1e-5)
    assert first.shape[1] == 12
    assert states[-1].tolist() == [40, 16]


def test_states_have_sherpa_onnx_order_and_shapes(make_encoder):
    embed, encoder = make_encoder(
        **CAUSAL, frontend_channels=(2, 4, 128), num_encoder_layers=(1, 1, 1)
    )
    states = init_states(embed, encoder, 3)
    assert [tuple(s.shape) for s in states] == [
        *[
            (16, 3, 16),
            (1, 3, 16, 12),
            (16, 3, 16),
            (16, 3, 16),
            (3, 16, 7),
            (3, 16, 7),
        ],
        *[(4, 3, 32), (1, 3, 4, 24), (4, 3, 16), (4, 3, 16), (3, 32, 3), (3, 32, 3)],
        *[(8, 3, 16), (1, 3, 8, 18), (8, 3, 16), (8, 3, 16), (3, 24, 7), (3, 24, 7)],
        (3, 128, 3, 19),
        (3,),
    ]
    assert states[-1].dtype == torch.int64
    x = torch.randn(3, window_frames(8), 80)
    _, _, after = streaming_forward(embed, encoder, x, states)
    assert [s.shape for s in after] == [s.shape for s in states]
    assert after[-1].tolist() == [8, 8, 8]


def test_set_chunk_replaces_the_chunk_of_the_configuration(make_encoder):
    embed, encoder = make_encoder(**CAUSAL)
    encoder.set_chunk(16, 64)
    assert get_streaming_chunk(encoder) == (16, 64)
    assert init_states(embed, encoder)[0].shape[0] == 64


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "causal"),
        (dict(causal=True), "chunk size > 0"),
        (dict(causal=True, chunk_size=(8,)), "left context"),
        ({**CAUSAL, "left_context_frames": (13,)}, "left context that is a multiple"),
    ],
)
def test_an_encoder_that_cannot_stream_is_refused(make_encoder, changes, message):
    with pytest.raises(ValueError, match=message):
        init_states(*make_encoder(**changes))


def test_a_wrong_window_or_number_of_states_is_refused(make_encoder):
    embed, encoder = make_encoder(**CAUSAL)
    states = init_states(embed, encoder)
    with pytest.raises(ValueError, match="has 29 frames"):
        streaming_forward(embed, encoder, torch.randn(1, 30, 80), states)
    with pytest.raises(ValueError, match="25 states for 4 layers"):
        streaming_forward(embed, encoder, torch.randn(1, 29, 80), states[:-1])


def test_a_wrong_number_of_states_has_no_batch_axes():
    assert state_batch_dims(8) == [1, 1, 1, 1, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="9 states"):
        state_batch_dims(9)
