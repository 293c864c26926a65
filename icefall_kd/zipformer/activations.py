"""SwooshL and SwooshR, with gradients that keep only their input.

swoosh_l(x) = ln(1 + exp(x - 4)) - 0.08 x - 0.035
swoosh_r(x) = ln(1 + exp(x - 1)) - 0.08 x - 0.313261687

Source: Yao et al., Zipformer, 2023, arXiv:2310.11230, eq. 3 and 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 0.08
L_SHIFT, L_OFFSET = 4.0, 0.035
R_SHIFT, R_OFFSET = 1.0, 0.313261687


class _Swoosh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, shift: float, offset: float):
        ctx.save_for_backward(x)
        ctx.shift = shift
        return swoosh_values(x, shift, offset)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        return swoosh_slopes(x, ctx.shift).mul_(grad), None, None


def swoosh_values(x: Tensor, shift: float, offset: float) -> Tensor:
    """Return the activation itself, without a graph of its own."""
    return F.softplus(x - shift).sub_(offset).add_(x, alpha=-SLOPE)


def swoosh_slopes(x: Tensor, shift: float) -> Tensor:
    """Return the derivative of the activation, between -0.08 and 0.92."""
    return (x - shift).sigmoid_().sub_(SLOPE)


def _swoosh(x: Tensor, shift: float, offset: float) -> Tensor:
    if torch.jit.is_tracing():
        return F.softplus(x - shift) - SLOPE * x - offset
    if not x.requires_grad:
        return swoosh_values(x, shift, offset)
    return _Swoosh.apply(x, shift, offset)


def swoosh_l(x: Tensor) -> Tensor:
    """Return SwooshL of ``x``, any shape and floating dtype: small inputs are off."""
    return _swoosh(x, L_SHIFT, L_OFFSET)


def swoosh_r(x: Tensor) -> Tensor:
    """Return SwooshR of ``x``, any shape and floating dtype: zero at zero."""
    return _swoosh(x, R_SHIFT, R_OFFSET)
