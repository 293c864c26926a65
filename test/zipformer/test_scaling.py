"""The building blocks of the Zipformer, compared with their definitions."""

import pytest
import torch
from torch import nn

from icefall_kd.zipformer.cpu import blocks
from icefall_kd.zipformer.scaling import (
    BiasNorm,
    ScheduledFloat,
    limit_param_value,
    scale_grad,
    scaled_linear,
    set_batch_count,
    stretch_schedules,
    swoosh_l,
    swoosh_r,
)


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = ScheduledFloat((0.0, 0.2), (100.0, 0.1), (300.0, 0.0), default=0.5)


@pytest.mark.parametrize(
    "batch, value", [(0, 0.2), (50, 0.15), (100, 0.1), (200, 0.05), (300, 0), (1e6, 0)]
)
def test_schedule_interpolates_and_is_constant_outside_its_points(batch, value):
    holder = Holder()
    set_batch_count(holder, batch)
    assert float(holder.rate) == pytest.approx(value)


def test_schedule_has_its_default_in_evaluation_and_before_a_batch_count():
    holder = Holder()
    assert float(holder.rate) == 0.5
    set_batch_count(holder, 100)
    assert float(holder.eval().rate) == 0.5
    assert float(holder.train().rate) == pytest.approx(0.1)


def test_stretching_scales_the_points_of_a_schedule():
    holder = Holder()
    stretch_schedules(holder, 1000 / 15)  # hours: 400 batches of 600 s instead of 4000
    set_batch_count(holder, 5)
    assert float(holder.rate) == pytest.approx(0.15)


def test_batches_of_a_schedule_must_increase():
    with pytest.raises(ValueError, match="increase"):
        ScheduledFloat((10.0, 1.0), (10.0, 2.0))


def test_warmup_hours_must_be_positive():
    with pytest.raises(ValueError, match="model.encoder.warmup_hours .* got 0"):
        stretch_schedules(Holder(), 0)


DEFINITIONS = {
    swoosh_l: lambda x: torch.logaddexp(x - 4, x * 0) - 0.08 * x - 0.035,
    swoosh_r: lambda x: torch.logaddexp(x - 1, x * 0) - 0.08 * x - 0.313261687,
}


def wide_range(dtype) -> torch.Tensor:
    far = torch.tensor([-1e4, -200.0, -90.0, 90.0, 200.0, 1e4])
    return torch.cat([torch.linspace(-30, 30, 1001), far]).to(dtype)


@pytest.mark.parametrize("swoosh", [swoosh_l, swoosh_r])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_swoosh_follows_its_definition(swoosh, needs_grad):
    x = wide_range(torch.float32)
    expected = DEFINITIONS[swoosh](x.double())
    y = swoosh(x.requires_grad_(needs_grad)).detach().double()
    torch.testing.assert_close(y, expected, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("swoosh", [swoosh_l, swoosh_r])
def test_swoosh_gradient_follows_its_definition(swoosh, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 100)  # several blocks
    x = wide_range(torch.float64).requires_grad_()
    weights = torch.randn(len(x), dtype=torch.float64)
    (expected,) = torch.autograd.grad((DEFINITIONS[swoosh](x) * weights).sum(), x)
    (ours,) = torch.autograd.grad((swoosh(x) * weights).sum(), x)
    torch.testing.assert_close(ours, expected)


def test_swoosh_keeps_dtype_and_shape_of_strided_half_precision_input():
    x = torch.randn(4, 6, 5).transpose(0, 2).to(torch.bfloat16).requires_grad_()
    y = swoosh_r(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert y.shape == x.grad.shape == (5, 6, 4)
    expected = DEFINITIONS[swoosh_r](x.detach().float())
    torch.testing.assert_close(y.float(), expected, atol=0.02, rtol=0.01)


def test_bias_norm_follows_its_formula_and_gradient():
    torch.manual_seed(0)
    norm = BiasNorm(6).double().eval()
    with torch.no_grad():
        norm.bias.normal_()
        norm.log_scale.fill_(0.3)
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    rms = ((x - norm.bias) ** 2).mean(-1, keepdim=True).sqrt()
    expected = x / rms * norm.log_scale.exp()
    y = norm(x)
    torch.testing.assert_close(y, expected)
    leaves, weights = [x, norm.bias, norm.log_scale], torch.randn_like(x)
    for a, b in zip(
        torch.autograd.grad((y * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
    ):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), expected)


def test_initial_scale_scales_the_output():
    torch.manual_seed(0)
    x = torch.randn(100, 64)
    full, small = scaled_linear(64, 64, 1.0), scaled_linear(64, 64, 0.05)
    assert small(x).std() < 0.1 * full(x).std()


def test_limited_values_move_only_towards_their_range():
    x = torch.tensor([-2.0, -2.0, 0.0, 0.0, 2.0, 2.0], requires_grad=True)
    grad = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    limit_param_value(x, -1.0, 1.0, prob=1.0).backward(grad)
    assert x.grad.tolist() == [-1.0, -1.0, 1.0, -1.0, 1.0, 1.0]


def test_scale_grad_scales_the_gradient_and_not_the_value():
    x = torch.ones(3, requires_grad=True)
    y = scale_grad(x, 0.2)
    y.sum().backward()
    assert torch.equal(y, x)
    torch.testing.assert_close(x.grad, torch.full((3,), 0.2))
