"""Attention: positions, weights, and what consumes them."""

import pytest
import torch

from icefall_kd.zipformer import scaling as activations
from icefall_kd.zipformer.attention import (
    CompactRelPositionalEncoding,
    RelPositionMultiheadAttentionWeights,
    attend,
    flatten_weights,
)
from icefall_kd.zipformer.cpu.scores import (
    MASKED_SCORE,
    align_positions,
    softmax_of_scores,
)


@pytest.mark.parametrize("num_frames, left", [(1, 0), (5, 0), (1, 3), (4, 6)])
def test_aligned_scores_are_those_of_the_time_differences(num_frames, left):
    width = left + 2 * num_frames
    scores = torch.arange(2.0 * num_frames * width).view(2, num_frames, width)
    first = -(left + num_frames - 1)  # the difference of column 0
    aligned = align_positions(scores, left + num_frames)
    for target in range(num_frames):
        for source in range(left + num_frames):
            column = (source - left - target) - first
            assert aligned[1, target, source] == scores[1, target, column]


def test_positions_of_a_difference_do_not_depend_on_the_length():
    positions = CompactRelPositionalEncoding(16).eval()
    short = positions(4, 0, torch.device("cpu"))
    long = positions(9, 5, torch.device("cpu"))
    torch.testing.assert_close(short, long[10:18])
    assert (short[:, -1] == 1).all()


def test_position_dimension_must_be_even():
    with pytest.raises(ValueError, match="pos_dim"):
        CompactRelPositionalEncoding(5)


def make_weights():
    torch.manual_seed(0)
    module = RelPositionMultiheadAttentionWeights(12, 8, 2, 6, 4).double().eval()
    x = torch.randn(3, 7, 12, dtype=torch.float64, requires_grad=True)
    positions = CompactRelPositionalEncoding(8).eval()(7, 0, x.device)
    mask = torch.zeros(3, 1, 1, 7, dtype=torch.bool)
    mask[1, ..., 5:] = True
    return module, x, positions, mask


@pytest.mark.parametrize("block", [1, 30, 10**6])
@pytest.mark.parametrize("graph", [False, True])
def test_tiles_give_the_softmax_of_the_whole(block, graph, monkeypatch):
    monkeypatch.setattr(activations, "BLOCK_ELEMENTS", block)
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 2, 5, 4, dtype=torch.float64)
    pos_query, positions = torch.randn_like(query[..., :2]), torch.randn(2, 2, 10)
    positions = positions.double()
    mask = torch.rand(3, 1, 5, 5) < 0.3
    mask[1, 0, 2] = True  # a frame that may attend to nothing
    scores = query @ key.transpose(2, 3) + align_positions(pos_query @ positions, 5)
    with torch.set_grad_enabled(graph):
        weights = softmax_of_scores(query, key, pos_query, positions, mask)
    expected = scores.masked_fill(mask, MASKED_SCORE).softmax(-1)
    torch.testing.assert_close(weights, expected)


def test_gradients_of_the_weights_are_right():
    module, x, positions, mask = make_weights()
    inputs = (x, *module.parameters())
    assert torch.autograd.gradcheck(
        lambda x, *_: module(x, positions, mask)[0], inputs, eps=1e-6, atol=1e-6
    )


def test_masked_sources_have_no_weight_and_rows_sum_to_one():
    module, x, positions, mask = make_weights()
    weights, _ = module(x, positions, mask)
    assert (weights[1, ..., 5:] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_all_masked_rows_are_finite():
    module, x, positions, _ = make_weights()
    weights, _ = module(x, positions, torch.ones(3, 1, 7, 7, dtype=torch.bool))
    weights.sum().backward()
    assert weights.isfinite().all() and x.grad.isfinite().all()


def test_attending_is_a_weighted_sum_by_head():
    torch.manual_seed(0)
    weights, values = torch.rand(2, 3, 4, 5), torch.randn(2, 5, 6)
    out = attend(weights, values)
    for head in range(3):
        part = slice(2 * head, 2 * head + 2)
        torch.testing.assert_close(out[..., part], weights[:, head] @ values[..., part])


def test_flat_weights_are_equal_where_attention_is_allowed():
    weights = torch.tensor([[0.9, 0.1, 0.0]])
    torch.testing.assert_close(flatten_weights(weights), torch.tensor([[0.5, 0.5, 0]]))
