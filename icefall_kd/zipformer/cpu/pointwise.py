"""Linear, SwooshL, linear: the body of a feed-forward module and of a ConvNeXt layer.

As one function it keeps the input and the hidden layer before the activation, no
more (nothing without gradients), and goes through the frames by blocks that stay in a
processor's cache.
"""

from collections.abc import Iterator, Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_kd.zipformer.cpu.precision import autocast_dtype, block_rows, widen
from icefall_kd.zipformer.regularisers import Balancer, balance_slopes, channel_moments
from icefall_kd.zipformer.scaling import SWOOSH_L, swoosh_l, swoosh_parts, swoosh_slope

Block = tuple[slice, Optional[Tensor]]


class _Pointwise(torch.autograd.Function):
    """out = swoosh_l(x w1^T + b1) * keep w2^T + b2, the Balancer on the sum inside."""

    @staticmethod
    def forward(ctx, x, w1, b1, w2, b2, keep, limits, scale):
        rows, *layers = _cast(x, w1, b1, w2, b2)
        hidden = rows.new_empty(rows.shape[0], w1.shape[0])
        out = _through(rows, layers, keep, x.shape[0], hidden)
        ctx.save_for_backward(rows, hidden, layers[0], layers[2], keep)
        ctx.setting = (x.shape, x.dtype, limits, scale)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):
        rows, hidden, w1, w2, keep = ctx.saved_tensors
        shape, dtype, limits, scale = ctx.setting
        grad = grad.reshape(-1, grad.shape[-1]).to(w2.dtype)
        push = None
        if limits is not None:
            push = balance_slopes(*channel_moments(hidden), limits, scale)
        grad_x = torch.empty_like(rows)
        wide = torch.promote_types(grad.dtype, torch.float32)
        sums = [
            torch.zeros(s, dtype=wide, device=grad.device)
            for s in (w1.shape, w1.shape[:1], w2.shape, w2.shape[:1])
        ]
        for part, mask in _blocks(rows, hidden.shape[1], keep, shape[0]):
            h, g = widen(hidden[part]), grad[part]
            a, above = swoosh_parts(h, SWOOSH_L)
            a = _masked(a, mask).to(w2.dtype)
            sums[2] += g.t() @ a
            sums[3] += g.sum(0)
            gh = _masked(widen(g @ w2), mask)
            gh.mul_(swoosh_slope(above, SWOOSH_L))
            if push is not None:
                gh.addcmul_(gh.abs(), torch.addcmul(push[0], push[1], h))
            gh = gh.to(w1.dtype)
            sums[0] += gh.t() @ rows[part]
            sums[1] += gh.sum(0)
            torch.mm(gh, w1, out=grad_x[part])
        return (grad_x.view(shape).to(dtype), *sums, None, None, None)


def _cast(x: Tensor, *layers: Tensor) -> list[Tensor]:
    """Return the frames of ``x`` as rows, and the layers, in the dtype of products."""
    dtype = autocast_dtype(x)
    rows = x.reshape(-1, x.shape[-1])
    return [t.detach().to(dtype) for t in (rows, *layers)]


def _through(
    rows: Tensor,
    layers: Sequence[Tensor],
    keep: Optional[Tensor],
    num_seqs: int,
    hidden: Optional[Tensor] = None,
) -> Tensor:
    """Return the rows that came through; ``hidden`` keeps the layer between if given.

    Args:
      rows: (num_seqs * T, C), in the dtype of the layers.
      layers: weight (H, C) and bias of the first, (C', H) and bias of the second.
      keep: (num_seqs, 1, H).
    """
    w1, b1, w2, b2 = layers
    out = rows.new_empty(rows.shape[0], w2.shape[0])
    with torch.autocast(rows.device.type, enabled=False):
        for part, mask in _blocks(rows, w1.shape[0], keep, num_seqs):
            target = None if hidden is None else hidden[part]
            h = torch.addmm(b1, rows[part], w1.t(), out=target)
            a, _ = swoosh_parts(widen(h), SWOOSH_L)
            a = _masked(a, mask).to(rows.dtype)
            torch.addmm(b2, a, w2.t(), out=out[part])
    return out


def _blocks(
    rows: Tensor, width: int, keep: Optional[Tensor], num_seqs: int
) -> Iterator[Block]:
    """Yield rows to take at once, with the dropout of each row that needs one."""
    num_rows = rows.shape[0]
    size = block_rows(rows, width)
    if keep is None:
        for start in range(0, num_rows, size):
            yield slice(start, start + size), None
        return
    frames = num_rows // num_seqs
    step = max(1, size // frames)  # whole sequences, so that a mask is one expand
    for n in range(0, num_seqs, step):
        mask = keep[n : n + step].expand(-1, frames, -1)
        yield slice(n * frames, (n + step) * frames), mask


def _masked(x: Tensor, mask: Optional[Tensor]) -> Tensor:
    if mask is not None:
        x.view(mask.shape).mul_(mask)
    return x


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
      first, second: linear layers, or 1x1 convolutions, C to H and H to C'.
      balancer: of the hidden layer.
      keep: (N, 1, H), dropout of hidden channels, for ``x`` of three axes.
    Returns:
      (N, ..., C').
    """
    layers = (
        first.weight.flatten(1),
        first.bias,
        second.weight.flatten(1),
        second.bias,
    )
    graph = torch.is_grad_enabled()
    if torch.jit.is_tracing() or (x.is_cuda and not graph):
        x = swoosh_l(F.linear(x, *layers[:2]))
        return F.linear(x if keep is None else x * keep, *layers[2:])
    if not graph:
        rows, *layers = _cast(x, *layers)
        return _through(rows, layers, keep, x.shape[0]).view(*x.shape[:-1], -1)
    limits = balancer.limits() if balancer.draw() else None
    return _Pointwise.apply(x, *layers, keep, limits, balancer.grad_scale)
