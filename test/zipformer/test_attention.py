"""Attention: positional encoding, weights and the modules that use them."""

import pytest
import torch

from icefall_kd.zipformer.attention import (
    CompactRelPositionalEncoding,
    RelPositionMultiheadAttentionWeights,
    attend,
    flatten_weights,
)


def test_positional_encoding_does_not_depend_on_the_length():
    positions = CompactRelPositionalEncoding(16).eval()
    short = positions(4, 0, torch.device("cpu"))
    long = positions(9, 5, torch.device("cpu"))
    torch.testing.assert_close(short, long[10:18])
    assert (short[:, -1] == 1).all()


def test_pos_dim_must_be_even():
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


def test_attention_weights_pass_gradcheck():
    module, x, positions, mask = make_weights()
    inputs = (x, *module.parameters())
    assert torch.autograd.gradcheck(
        lambda x, *_: module(x, positions, mask)[0], inputs, eps=1e-6, atol=1e-6
    )


def test_masked_sources_have_zero_weight_and_rows_sum_to_one():
    module, x, positions, mask = make_weights()
    weights, _ = module(x, positions, mask)
    assert (weights[1, ..., 5:] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_fully_masked_rows_are_finite():
    module, x, positions, _ = make_weights()
    weights, _ = module(x, positions, torch.ones(3, 1, 7, 7, dtype=torch.bool))
    weights.sum().backward()
    assert weights.isfinite().all() and x.grad.isfinite().all()


def test_attend_is_a_weighted_sum_for_each_head():
    torch.manual_seed(0)
    weights, values = torch.rand(2, 3, 4, 5), torch.randn(2, 5, 6)
    out = attend(weights, values)
    for head in range(3):
        part = slice(2 * head, 2 * head + 2)
        torch.testing.assert_close(out[..., part], weights[:, head] @ values[..., part])


def test_flat_weights_are_equal_where_weights_are_positive():
    weights = torch.tensor([[0.9, 0.1, 0.0]])
    torch.testing.assert_close(flatten_weights(weights), torch.tensor([[0.5, 0.5, 0]]))
