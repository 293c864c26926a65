"""Depthwise convolutions against torch's, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from icefall_kd.zipformer.cpu.depthwise import ROWS, depthwise_frames, depthwise_image


def leaves(*shapes):
    torch.manual_seed(0)
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


def assert_same(ours, theirs, inputs):
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((theirs * weights).sum(), inputs),
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kernel, padding", [((7, 7), (3, 3)), ((3, 5), (1, 0))])
@pytest.mark.parametrize("height", [11, ROWS + 5])
def test_image_equals_torch(height, kernel, padding):
    x, weight, bias = inputs = leaves((3, 4, height, 9), (4, 1, *kernel), (4,))
    ours = depthwise_image(x, weight, bias, padding)
    theirs = F.conv2d(x, weight, bias, padding=padding, groups=4)
    assert_same(ours, theirs, inputs)


@pytest.mark.parametrize("num_frames", [1, 8, 32, 75])
@pytest.mark.parametrize("kernel, padding", [(31, 15), (15, 7), (1, 0)])
def test_frames_equal_torch(num_frames, kernel, padding):
    x, weight, bias = inputs = leaves((3, num_frames, 4), (4, 1, kernel), (4,))
    ours = depthwise_frames(x, weight, bias, padding)
    theirs = F.conv1d(x.transpose(1, 2), weight, bias, padding=padding, groups=4)
    assert_same(ours, theirs.transpose(1, 2), inputs)


def test_autocast_keeps_the_dtype_of_the_weights_gradient():
    x = torch.randn(2, 20, 4, requires_grad=True)
    weight = torch.randn(4, 1, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_frames(x, weight, None, 2)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad.dtype == weight.grad.dtype == torch.float32
