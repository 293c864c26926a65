"""Swoosh: values and gradients against the definition."""

import pytest
import torch

from icefall_kd.zipformer import scaling as activations
from icefall_kd.zipformer.scaling import swoosh_l, swoosh_r

DEFINITIONS = {
    swoosh_l: lambda x: torch.logaddexp(x - 4, x * 0) - 0.08 * x - 0.035,
    swoosh_r: lambda x: torch.logaddexp(x - 1, x * 0) - 0.08 * x - 0.313261687,
}


def wide_range(dtype) -> torch.Tensor:
    far = torch.tensor([-1e4, -200.0, -90.0, 90.0, 200.0, 1e4])
    return torch.cat([torch.linspace(-30, 30, 1001), far]).to(dtype)


@pytest.mark.parametrize("swoosh", [swoosh_l, swoosh_r])
@pytest.mark.parametrize("trains", [False, True])
def test_values_follow_the_definition(swoosh, trains):
    x = wide_range(torch.float32)
    expected = DEFINITIONS[swoosh](x.double())
    y = swoosh(x.requires_grad_(trains)).detach().double()
    torch.testing.assert_close(y, expected, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("swoosh", [swoosh_l, swoosh_r])
def test_gradients_follow_the_definition(swoosh, monkeypatch):
    monkeypatch.setattr(activations, "BLOCK_ELEMENTS", 100)  # several blocks
    x = wide_range(torch.float64).requires_grad_()
    weights = torch.randn(len(x), dtype=torch.float64)
    (expected,) = torch.autograd.grad((DEFINITIONS[swoosh](x) * weights).sum(), x)
    (ours,) = torch.autograd.grad((swoosh(x) * weights).sum(), x)
    torch.testing.assert_close(ours, expected)


def test_half_precision_and_strided_inputs_keep_their_dtype_and_shape():
    x = torch.randn(4, 6, 5).transpose(0, 2).to(torch.bfloat16).requires_grad_()
    y = swoosh_r(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert y.shape == x.grad.shape == (5, 6, 4)
    expected = DEFINITIONS[swoosh_r](x.detach().float())
    torch.testing.assert_close(y.float(), expected, atol=0.02, rtol=0.01)
