"""Values and gradients of the CPU kernels, compared with plain torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from icefall_kd.zipformer.cpu import blocks
from icefall_kd.zipformer.cpu.attention_weights import (
    MASKED_SCORE,
    align_positions,
    compute_weights,
)
from icefall_kd.zipformer.cpu.depthwise import (
    IMAGE_ROWS,
    depthwise_frames,
    depthwise_image,
)
from icefall_kd.zipformer.cpu.pointwise import pointwise_pair
from icefall_kd.zipformer.regularisers import Balancer
from icefall_kd.zipformer.scaling import swoosh_l


def make_leaves(*shapes):
    torch.manual_seed(0)
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


def assert_same(ours, theirs, inputs):
    """Compare two outputs, and their gradients with respect to ``inputs``."""
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((theirs * weights).sum(), inputs),
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kernel, padding", [((7, 7), (3, 3)), ((3, 5), (1, 0))])
@pytest.mark.parametrize("height", [11, IMAGE_ROWS + 5])
def test_depthwise_image_equals_torch(height, kernel, padding):
    x, weight, bias = inputs = make_leaves((3, 4, height, 9), (4, 1, *kernel), (4,))
    ours = depthwise_image(x, weight, bias, padding)
    theirs = F.conv2d(x, weight, bias, padding=padding, groups=4)
    assert_same(ours, theirs, inputs)


@pytest.mark.parametrize("num_frames", [1, 8, 32, 75])
@pytest.mark.parametrize("kernel, padding", [(31, 15), (15, 7), (1, 0)])
def test_depthwise_frames_equal_torch(num_frames, kernel, padding):
    x, weight, bias = inputs = make_leaves((3, num_frames, 4), (4, 1, kernel), (4,))
    ours = depthwise_frames(x, weight, bias, padding)
    theirs = F.conv1d(x.transpose(1, 2), weight, bias, padding=padding, groups=4)
    assert_same(ours, theirs.transpose(1, 2), inputs)


def test_depthwise_gradients_are_float32_under_autocast():
    x = torch.randn(2, 20, 4, requires_grad=True)
    weight = torch.randn(4, 1, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_frames(x, weight, None, 2)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad.dtype == weight.grad.dtype == torch.float32


def make_pair(prob):
    torch.manual_seed(0)
    layers = nn.Linear(5, 12).double(), nn.Linear(12, 7).double()
    balancer = Balancer(0.45, 0.55, 0.9, 1.1, grad_scale=0.5, prob=prob)
    x = torch.randn(6, 11, 5, dtype=torch.float64, requires_grad=True)
    return layers, balancer, x


@pytest.mark.parametrize("block", [1, 200, 10**6])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_pointwise_pair_equals_its_parts(block, dropout, prob, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", block)
    (first, second), balancer, x = make_pair(prob)
    keep = torch.rand(6, 1, 12).double().round().mul(2) if dropout else None
    y = pointwise_pair(x, first, second, balancer, keep)
    hidden = swoosh_l(balancer(first(x)))
    expected = second(hidden if keep is None else hidden * keep)
    assert_same(y, expected, [x, *first.parameters(), *second.parameters()])


@pytest.mark.parametrize("block", [1, 200, 10**6])
def test_pointwise_pair_is_the_same_without_gradients(block, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", block)
    (first, second), balancer, x = make_pair(0.0)
    with torch.no_grad():
        y = pointwise_pair(x, first, second, balancer)
    torch.testing.assert_close(y, second(swoosh_l(first(x))).detach())


def test_pointwise_pair_accepts_1x1_convolutions():
    first, second = nn.Conv2d(5, 12, 1), nn.Conv2d(12, 5, 1)
    x = torch.randn(2, 5, 3, 4)
    y = pointwise_pair(x.permute(0, 2, 3, 1), first, second, Balancer(prob=0.0))
    expected = second(swoosh_l(first(x)))
    torch.testing.assert_close(y.permute(0, 3, 1, 2), expected, atol=1e-6, rtol=1e-5)


def test_pointwise_pair_under_autocast_is_bfloat16_with_float32_gradients():
    (first, second), balancer, x = make_pair(0.0)
    first, second, x = first.float(), second.float(), x.detach().float()
    expected = second(swoosh_l(first(x))).detach()
    with torch.autocast("cpu", torch.bfloat16):
        y = pointwise_pair(x.requires_grad_(), first, second, balancer)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, atol=0.05, rtol=0.05)
    y.float().sum().backward()
    assert x.grad.dtype == first.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("num_frames, left", [(1, 0), (5, 0), (1, 3), (4, 6)])
def test_aligned_scores_have_the_time_difference_of_their_frames(num_frames, left):
    width = left + 2 * num_frames
    scores = torch.arange(2.0 * num_frames * width).view(2, num_frames, width)
    first = -(left + num_frames - 1)  # time difference of column 0
    aligned = align_positions(scores, left + num_frames)
    for target in range(num_frames):
        for source in range(left + num_frames):
            column = (source - left - target) - first
            assert aligned[1, target, source] == scores[1, target, column]


@pytest.mark.parametrize("block", [1, 30, 10**6])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_attention_weights_by_tiles_equal_one_softmax(block, needs_grad, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", block)
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 2, 5, 4, dtype=torch.float64)
    pos_query, positions = torch.randn_like(query[..., :2]), torch.randn(2, 2, 10)
    positions = positions.double()
    mask = torch.rand(3, 1, 5, 5) < 0.3
    mask[1, 0, 2] = True  # a fully masked frame
    scores = query @ key.transpose(2, 3) + align_positions(pos_query @ positions, 5)
    with torch.set_grad_enabled(needs_grad):
        weights = compute_weights(query, key, pos_query, positions, mask)
    expected = scores.masked_fill(mask, MASKED_SCORE).softmax(-1)
    torch.testing.assert_close(weights, expected)
