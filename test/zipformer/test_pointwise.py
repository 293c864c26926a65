"""Linear, SwooshL, linear in one function, against its parts."""

import pytest
import torch
from torch import nn

from icefall_kd.zipformer import scaling as activations
from icefall_kd.zipformer.cpu.pointwise import pointwise_pair
from icefall_kd.zipformer.regularisers import Balancer
from icefall_kd.zipformer.scaling import swoosh_l


def make(prob):
    torch.manual_seed(0)
    layers = nn.Linear(5, 12).double(), nn.Linear(12, 7).double()
    balancer = Balancer(0.45, 0.55, 0.9, 1.1, grad_scale=0.5, prob=prob)
    x = torch.randn(6, 11, 5, dtype=torch.float64, requires_grad=True)
    return layers, balancer, x


@pytest.mark.parametrize("block", [1, 200, 10**6])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_one_function_equals_its_parts(block, dropout, prob, monkeypatch):
    monkeypatch.setattr(activations, "BLOCK_ELEMENTS", block)
    (first, second), balancer, x = make(prob)
    keep = torch.rand(6, 1, 12).double().round().mul(2) if dropout else None
    y = pointwise_pair(x, first, second, balancer, keep)
    hidden = swoosh_l(balancer(first(x)))
    expected = second(hidden if keep is None else hidden * keep)
    torch.testing.assert_close(y, expected)

    leaves = [x, *first.parameters(), *second.parameters()]
    weights = torch.randn_like(y)
    ours = torch.autograd.grad((y * weights).sum(), leaves)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("block", [1, 200, 10**6])
def test_evaluation_without_gradients_gives_the_same(block, monkeypatch):
    monkeypatch.setattr(activations, "BLOCK_ELEMENTS", block)
    (first, second), balancer, x = make(0.0)
    with torch.no_grad():
        y = pointwise_pair(x, first, second, balancer)
    torch.testing.assert_close(y, second(swoosh_l(first(x))).detach())


def test_pointwise_convolutions_serve_as_linear_layers():
    first, second = nn.Conv2d(5, 12, 1), nn.Conv2d(12, 5, 1)
    x = torch.randn(2, 5, 3, 4)
    y = pointwise_pair(x.permute(0, 2, 3, 1), first, second, Balancer(prob=0.0))
    expected = second(swoosh_l(first(x)))
    torch.testing.assert_close(y.permute(0, 3, 1, 2), expected, atol=1e-6, rtol=1e-5)


def test_autocast_multiplies_in_bfloat16_and_returns_full_gradients():
    (first, second), balancer, x = make(0.0)
    first, second, x = first.float(), second.float(), x.detach().float()
    expected = second(swoosh_l(first(x))).detach()
    with torch.autocast("cpu", torch.bfloat16):
        y = pointwise_pair(x.requires_grad_(), first, second, balancer)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, atol=0.05, rtol=0.05)
    y.float().sum().backward()
    assert x.grad.dtype == first.weight.grad.dtype == torch.float32
