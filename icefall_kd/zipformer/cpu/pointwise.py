"""Linear, SwooshL, linear: the core of feed-forward modules and ConvNeXt layers.

One autograd function computes blocks of frames that fit a core's cache.  For the
backward pass it stores the input and the hidden layer before the activation.
"""

from collections.abc import Iterator, Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_kd.zipformer.cpu.blocks import get_block_rows, get_product_dtype, widen
from icefall_kd.zipformer.cpu.swoosh import (
    SWOOSH_L,
    apply_swoosh,
    compute_slope,
    compute_swoosh,
)
from icefall_kd.zipformer.regularisers import (
    Balancer,
    channel_moments,
    compute_balancer_terms,
)

Block = tuple[slice, Optional[Tensor]]


def pointwise_pair(
    x: Tensor,
    first: torch.nn.Module,
    second: torch.nn.Module,
    balancer: Balancer,
    keep: Optional[Tensor] = None,
) -> Tensor:
    """Return second(swoosh_l(balancer(first(x))) * keep).

    Args:
      x: (N, ..., C).
      first, second: linear layers or 1x1 convolutions, C to H and H to C'.
      balancer: of the hidden layer before the activation.
      keep: (N, 1, H), dropout mask of hidden channels; only for ``x`` (N, T, C).
    Returns:
      (N, ..., C').
    """
    layers = (
        first.weight.flatten(1),
        first.bias,
        second.weight.flatten(1),
        second.bias,
    )
    needs_grad = torch.is_grad_enabled()
    if torch.jit.is_tracing() or (x.is_cuda and not needs_grad):
        x = apply_swoosh(F.linear(x, *layers[:2]), SWOOSH_L)
        return F.linear(x if keep is None else x * keep, *layers[2:])
    if not needs_grad:
        rows, *layers = _cast(x, *layers)
        out = _forward_by_blocks(rows, layers, keep, x.shape[0])
        return out.view(*x.shape[:-1], -1)
    limits = balancer.limits() if balancer.draw() else None
    return _PointwisePair.apply(x, *layers, keep, limits, balancer.grad_scale)


class _PointwisePair(torch.autograd.Function):
    """out = swoosh_l(x w1^T + b1) * keep w2^T + b2, with a Balancer before Swoosh."""

    @staticmethod
    def forward(ctx, x, w1, b1, w2, b2, keep, limits, scale):
        rows, *layers = _cast(x, w1, b1, w2, b2)
        hidden = rows.new_empty(rows.shape[0], w1.shape[0])
        out = _forward_by_blocks(rows, layers, keep, x.shape[0], hidden)
        ctx.save_for_backward(rows, hidden, layers[0], layers[2], keep)
        ctx.shape, ctx.dtype, ctx.limits, ctx.scale = x.shape, x.dtype, limits, scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):
        rows, hidden, w1, w2, keep = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1]).to(w2.dtype)
        balancer_terms = None
        if ctx.limits is not None:
            moments = channel_moments(hidden)
            balancer_terms = compute_balancer_terms(*moments, ctx.limits, ctx.scale)
        grad_x = torch.empty_like(rows)
        wide = torch.promote_types(grad.dtype, torch.float32)
        grad_w1, grad_b1, grad_w2, grad_b2 = sums = [
            torch.zeros(s, dtype=wide, device=grad.device)
            for s in (w1.shape, w1.shape[:1], w2.shape, w2.shape[:1])
        ]
        for part, mask in _blocks(rows, hidden.shape[1], keep, ctx.shape[0]):
            h, g = widen(hidden[part]), grad[part]
            a, denominator = compute_swoosh(h, SWOOSH_L)
            a = _apply_mask(a, mask).to(w2.dtype)
            grad_w2 += g.t() @ a
            grad_b2 += g.sum(0)
            gh = _apply_mask(widen(g @ w2), mask)
            gh.mul_(compute_slope(denominator, SWOOSH_L))
            if balancer_terms is not None:
                offset, slope = balancer_terms
                gh.addcmul_(gh.abs(), torch.addcmul(offset, slope, h))
            gh = gh.to(w1.dtype)
            grad_w1 += gh.t() @ rows[part]
            grad_b1 += gh.sum(0)
            torch.mm(gh, w1, out=grad_x[part])
        return (grad_x.view(ctx.shape).to(ctx.dtype), *sums, None, None, None)


def _cast(x: Tensor, *layers: Tensor) -> list[Tensor]:
    """Return the frames of ``x`` as rows, and the layers, in the dtype of products."""
    dtype = get_product_dtype(x)
    rows = x.reshape(-1, x.shape[-1])
    return [t.detach().to(dtype) for t in (rows, *layers)]


def _forward_by_blocks(
    rows: Tensor,
    layers: Sequence[Tensor],
    keep: Optional[Tensor],
    num_seqs: int,
    hidden: Optional[Tensor] = None,
) -> Tensor:
    """Return the output rows; store the hidden layer in ``hidden`` if given.

    Args:
      rows: (num_seqs * T, C), in the dtype of the layers.
      layers: weight (H, C) and bias of the first, (C', H) and bias of the second.
      keep: (num_seqs, 1, H).
      hidden: (num_seqs * T, H).
    """
    w1, b1, w2, b2 = layers
    out = rows.new_empty(rows.shape[0], w2.shape[0])
    with torch.autocast(rows.device.type, enabled=False):
        for part, mask in _blocks(rows, w1.shape[0], keep, num_seqs):
            target = None if hidden is None else hidden[part]
            h = torch.addmm(b1, rows[part], w1.t(), out=target)
            a, _ = compute_swoosh(widen(h), SWOOSH_L)
            a = _apply_mask(a, mask).to(rows.dtype)
            torch.addmm(b2, a, w2.t(), out=out[part])
    return out


def _blocks(
    rows: Tensor, width: int, keep: Optional[Tensor], num_seqs: int
) -> Iterator[Block]:
    """Yield the slice of rows of each block, and its part of the dropout mask."""
    num_rows = rows.shape[0]
    size = get_block_rows(rows, width)
    if keep is None:
        for start in range(0, num_rows, size):
            yield slice(start, start + size), None
        return
    frames = num_rows // num_seqs
    step = max(1, size // frames)  # complete sequences, so that expand gives the mask
    for n in range(0, num_seqs, step):
        mask = keep[n : n + step].expand(-1, frames, -1)
        yield slice(n * frames, (n + step) * frames), mask


def _apply_mask(x: Tensor, mask: Optional[Tensor]) -> Tensor:
    if mask is not None:
        x.view(mask.shape).mul_(mask)
    return x
