"""BiasNorm, and linear layers with scaled initial weights."""

import torch
from torch import Tensor, nn

from icefall_kd.zipformer.precision import widen
from icefall_kd.zipformer.regularisers import keep_within


class _BiasNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor, log_scale: Tensor):
        x = widen(x)
        power = (x - bias).square_().mean(dim=-1, keepdim=True)
        scale = power.rsqrt() * log_scale.exp()
        ctx.save_for_backward(x, bias, power, scale)
        return x * scale

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, bias, power, scale = ctx.saved_tensors
        grad = widen(grad)
        by_scale = (grad * x).sum(dim=-1, keepdim=True) * scale  # times scale
        pull = (x - bias).mul_(by_scale / (power * x.shape[-1]))
        grad_bias = pull.reshape(-1, pull.shape[-1]).sum(dim=0)
        return torch.addcmul(-pull, grad, scale), grad_bias, by_scale.sum()


class BiasNorm(nn.Module):
    """y = x / rms(x - bias) * exp(log_scale), rms over the last axis.

    Source: Yao et al., Zipformer, 2023, arXiv:2310.11230, eq. 2.

    Args:
      num_channels: size of the last axis.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.empty(num_channels).normal_(std=1e-4))

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing() or not torch.is_grad_enabled():
            power = torch.mean((x - self.bias) ** 2, dim=-1, keepdim=True)
            return x * (power**-0.5 * self.log_scale.exp())
        log_scale = self.log_scale
        if self.training:
            log_scale = keep_within(log_scale, -1.5, 1.5)
        return _BiasNorm.apply(x, self.bias, log_scale)


def scale_init(layer: nn.Module, initial_scale: float) -> nn.Module:
    """Shrink the fresh weights of a linear or convolution layer, in place.

    With an optimiser that learns relative to a parameter's size, the initial scale is
    how softly a branch starts.  Returns the layer.
    """
    with torch.no_grad():
        layer.weight.mul_(initial_scale)
        if layer.bias is not None:
            layer.bias.uniform_(-0.1 * initial_scale, 0.1 * initial_scale)
    return layer


def scaled_linear(
    in_channels: int, out_channels: int, initial_scale: float, bias: bool = True
) -> nn.Linear:
    """Return a linear layer whose initial weights are scaled, see `scale_init`."""
    return scale_init(nn.Linear(in_channels, out_channels, bias=bias), initial_scale)
