"""Balancer and Whiten, compared with autograd of their penalties."""

import pytest
import torch

from icefall_kd.zipformer.regularisers import (
    Balancer,
    Whiten,
    abs_to_rms,
    positive_to_mean,
    whitening_metric,
)


def slow_balancer(x, grad, limits, scale):
    """Add autograd's gradient of |m - clip(m)| + |ln(clip(r) / r)| to ``grad``."""
    low_mean, high_mean, low_rms, high_rms = limits
    x = x.detach().requires_grad_()
    power = (x**2).mean(0)
    mean = x.mean(0)
    m = mean / (power - mean**2).sqrt()
    r = power.sqrt()
    loss = (m - m.clamp(low_mean, high_mean)).abs()
    loss = loss + (r.clamp(low_rms, high_rms) / r).log().abs()
    (penalty,) = torch.autograd.grad(loss.sum(), x)
    penalty = penalty * scale / (penalty**2).mean(0).sqrt().clamp(min=1e-20)
    return grad + grad.abs() * penalty


def make_channels() -> torch.Tensor:
    """Return (500, 5) channels within the limits, and beyond each of them."""
    torch.manual_seed(0)
    spread = torch.tensor([1.0, 1.0, 1.0, 0.01, 50.0], dtype=torch.float64)
    shift = torch.tensor([0.0, 3.0, -3.0, 0.001, 20.0], dtype=torch.float64)
    return torch.randn(500, 5, dtype=torch.float64) * spread + shift


def test_balancer_adds_the_gradient_of_its_penalty():
    balancer = Balancer(0.3, 0.7, 0.2, 10.0, prob=1.0)
    x = make_channels().requires_grad_()
    grad = torch.randn_like(x)
    y = balancer(x.view(10, 50, 5))
    assert torch.equal(y.detach().view(500, 5), x.detach())
    y.backward(grad.view(10, 50, 5))
    expected = slow_balancer(x, grad, balancer.limits(), balancer.grad_scale)
    torch.testing.assert_close(x.grad, expected)
    assert torch.equal(x.grad[:, 0], grad[:, 0])  # within its limits


def test_balancer_gradient_of_a_dead_or_constant_channel_is_finite():
    x = torch.zeros(100, 2)
    x[:, 1] = 5.0
    x.requires_grad_()
    Balancer(0.3, 0.7, 0.2, 10.0, prob=1.0)(x).backward(torch.ones(100, 2))
    assert x.grad.isfinite().all()
    assert torch.equal(x.grad[:, 0], torch.ones(100))


def test_balancer_descent_brings_a_channel_within_its_limits():
    torch.manual_seed(0)
    balancer = Balancer(0.45, 0.55, 0.5, 2.0, grad_scale=1.0, prob=1.0)
    x = (0.1 * torch.randn(400, 1) + 0.3).requires_grad_()
    for _ in range(300):
        # A random gradient without a preferred direction.
        (grad,) = torch.autograd.grad(balancer(x), x, torch.randn_like(x))
        x.data -= 0.03 * grad
    assert 0.4 < (x > 0).float().mean() < 0.6
    assert x.abs().mean() > 0.4


def test_balancer_limits_are_moments_of_a_gaussian():
    assert abs_to_rms(1.0) == pytest.approx((torch.pi / 2) ** 0.5)
    assert positive_to_mean(0.5) == pytest.approx(0.0, abs=1e-9)
    assert positive_to_mean(0.05) == pytest.approx(-positive_to_mean(0.95))


def slow_metric(x, groups):
    x = x.reshape(len(x), groups, -1).transpose(0, 1)
    x = x - x.mean(1, keepdim=True)
    eigenvalues = torch.linalg.eigvalsh(x.transpose(1, 2) @ x)
    return (eigenvalues**2).mean() / eigenvalues.mean() ** 2


@pytest.mark.parametrize("groups", [1, 3])
def test_whiten_adds_the_gradient_of_its_metric(groups):
    torch.manual_seed(0)
    x = torch.randn(200, 6, dtype=torch.float64)
    x = (x @ torch.randn(6, 6, dtype=torch.float64) + 1.0).requires_grad_()
    grad = torch.randn_like(x)
    whiten = Whiten(groups, 1.0, grad_scale=0.1, prob=(1.0, 1.0))
    whiten(x.view(20, 10, 6)).backward(grad.view(20, 10, 6))
    (penalty,) = torch.autograd.grad(slow_metric(x, groups), x)
    expected = grad + penalty * 0.1 * grad.norm() / penalty.norm()
    torch.testing.assert_close(x.grad, expected)


def test_whiten_samples_white_data_less_often():
    torch.manual_seed(0)
    x = torch.randn(1000, 4, requires_grad=True)
    whiten = Whiten(1, 2.0, grad_scale=0.1, prob=(0.25, 1.0))
    grad = torch.randn_like(x)
    whiten(x).backward(grad)
    assert torch.equal(x.grad, grad)
    assert whiten.prob == 0.25
    whiten.add_penalty_gradient(x.detach() @ torch.ones(4, 4), grad)
    assert whiten.prob == 1.0


def test_whitening_metric_of_white_data_is_one():
    metric, _ = whitening_metric(3.0 * torch.eye(5).expand(2, 5, 5))
    assert float(metric) == pytest.approx(1.0)


def test_regularisers_do_nothing_in_evaluation():
    x = (torch.randn(10, 4) + 9.0).requires_grad_()
    for module in (Balancer(prob=1.0), Whiten(1, 1.0, 0.1, prob=(1.0, 1.0))):
        assert module.eval()(x) is x
