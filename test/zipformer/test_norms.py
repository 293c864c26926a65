"""BiasNorm and scaled initial weights."""

import torch

from icefall_kd.zipformer.scaling import BiasNorm, scaled_linear


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


def test_initial_scale_shrinks_the_output():
    torch.manual_seed(0)
    x = torch.randn(100, 64)
    full, small = scaled_linear(64, 64, 1.0), scaled_linear(64, 64, 0.05)
    assert small(x).std() < 0.1 * full(x).std()
