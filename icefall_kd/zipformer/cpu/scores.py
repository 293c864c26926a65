"""Softmax of attention scores by content and by position.

Scores are the largest tensors of a layer: only the weights are kept, and all else is
made and used by tiles that stay in a processor's cache.
"""

from collections.abc import Iterator
from typing import Optional

import torch
from torch import Tensor

from icefall_kd.zipformer.cpu.precision import autocast_dtype, block_rows, widen

MASKED_SCORE = -1000.0  # exp of it is exactly 0, yet a row of nothing else is no NaN
# A failsafe against implausible scores, whose softmax has no gradient: now and then
# every score beyond the limit is pulled back by a constant gradient.
SCORE_LIMIT = 25.0
SCORE_PENALTY = 1e-4


def align_positions(scores: Tensor, num_sources: int) -> Tensor:
    """Turn scores by time difference into scores by source frame.

    Row i of the result is row i of the input from column T - 1 - i on: reading the
    rows with a stride one shorter does that without copying.

    Args:
      scores: (..., T, L + 2 T) over the differences of `CompactRelPositionalEncoding`.
      num_sources: L + T.
    Returns:
      (..., T, L + T), a view where ``scores`` is contiguous.
    """
    num_frames, width = scores.shape[-2:]
    flat = scores.flatten(-2)[..., num_frames - 1 :]
    flat = flat[..., : num_frames * (width - 1)]
    rows = flat.reshape(*scores.shape[:-2], num_frames, width - 1)
    return rows[..., :num_sources]


def softmax_of_scores(
    query: Tensor,
    key: Tensor,
    pos_query: Optional[Tensor],
    positions: Optional[Tensor],
    mask: Optional[Tensor] = None,
    limited: bool = False,
) -> Tensor:
    """Return the attention weights.

    Args:
      query: (N, H, T, D).
      key: (N, H, L + T, D).
      pos_query: (N, H, T, P), None for scores by content alone.
      positions: (H, P, L + 2 T), over the differences of `CompactRelPositionalEncoding`.
      mask: bool, broadcasts to (N, 1, T, L + T), True is not attended to.
      limited: whether the gradient pulls back scores beyond the limit.
    Returns:
      (N, H, T, L + T).
    """
    graph = torch.is_grad_enabled()
    if torch.jit.is_tracing() or (query.is_cuda and not graph):
        scores = query @ key.transpose(2, 3)
        if pos_query is not None:
            scores = scores + align_positions(pos_query @ positions, key.shape[2])
        if mask is not None:
            scores = scores.masked_fill(mask, MASKED_SCORE)
        return scores.softmax(dim=-1)
    if graph:
        return _Weights.apply(query, key, pos_query, positions, mask, limited)
    return _by_tiles(*_cast(query, key, pos_query, positions), mask)


class _Weights(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, pos_query, positions, mask, limited):
        parts = _cast(query, key, pos_query, positions)
        side = None
        if limited:
            shape = (*query.shape[:3], key.shape[2])
            side = query.new_empty(shape, dtype=torch.int8)
        weights = _by_tiles(*parts, mask, side)
        ctx.save_for_backward(*parts, weights, side)
        return weights

    @staticmethod
    def backward(ctx, grad):
        query, key, pos_query, positions, weights, side = ctx.saved_tensors
        grad_query = torch.empty_like(query)
        grad_key = widen(torch.zeros_like(key))
        grad_pos_query = grad_positions = None
        if pos_query is not None:
            grad_pos_query = torch.empty_like(pos_query)
            grad_positions = widen(torch.zeros_like(positions))
        for seqs, rows, columns in _tiles(weights):
            wide = widen(weights[seqs, :, rows])
            # Masked scores have weight 0, and with it no gradient.
            g = widen(grad[seqs, :, rows])
            g = torch._softmax_backward_data(g, wide, -1, wide.dtype)
            if side is not None:
                g.add_(side[seqs, :, rows], alpha=SCORE_PENALTY)
            if pos_query is not None:
                by_offset = query.new_zeros(*g.shape[:3], g.shape[2] + g.shape[3])
                align_positions(by_offset, g.shape[-1]).copy_(g)
                grad_pos_query[seqs, :, rows] = by_offset @ positions[
                    ..., columns
                ].transpose(-2, -1)
                part = pos_query[seqs, :, rows].transpose(-2, -1) @ by_offset
                grad_positions[..., columns] += part.sum(0)
            g = g.to(query.dtype)
            grad_query[seqs, :, rows] = g @ key[seqs]
            grad_key[seqs] += g.transpose(-2, -1) @ query[seqs, :, rows]
        grad_key = grad_key.to(key.dtype)
        if grad_positions is not None:
            grad_positions = grad_positions.to(positions.dtype)
        return grad_query, grad_key, grad_pos_query, grad_positions, None, None


def _cast(*parts: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
    """Return the parts in the dtype of products; a tile copies what is in no order."""
    dtype = autocast_dtype(parts[0])
    return tuple(None if p is None else p.to(dtype).contiguous() for p in parts)


def _by_tiles(
    query: Tensor,
    key: Tensor,
    pos_query: Optional[Tensor],
    positions: Optional[Tensor],
    mask: Optional[Tensor],
    side: Optional[Tensor] = None,
) -> Tensor:
    """Return the weights; ``side`` is set to 1 and -1 where scores exceed the limit."""
    weights = query.new_empty(*query.shape[:3], key.shape[2])
    if mask is not None:
        mask = mask.expand(weights.shape[0], 1, *weights.shape[2:])
    with torch.autocast(query.device.type, enabled=False):
        for seqs, rows, columns in _tiles(weights):
            scores = widen(query[seqs, :, rows] @ key[seqs].transpose(-2, -1))
            if pos_query is not None:
                by_offset = pos_query[seqs, :, rows] @ positions[..., columns]
                scores.add_(align_positions(by_offset, scores.shape[-1]))
            if side is not None:
                above, below = scores > SCORE_LIMIT, scores < -SCORE_LIMIT
                side[seqs, :, rows] = above.to(torch.int8) - below.to(torch.int8)
            if mask is not None:
                _hide(scores, mask[seqs, :, rows])
            weights[seqs, :, rows] = scores.softmax(dim=-1)
    return weights


def _hide(scores: Tensor, mask: Tensor) -> None:
    """Set the scores to `MASKED_SCORE` where the mask is True."""
    if scores.is_cuda:
        scores.masked_fill_(mask, MASKED_SCORE)
    else:  # arithmetic is twice as fast or better
        scores.add_(mask.to(scores.dtype), alpha=2.0 * MASKED_SCORE)
        scores.clamp_(min=MASKED_SCORE)


def _tiles(weights: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Yield sequences, target frames and offsets to take at once: all on a GPU.

    The offsets are the columns of the position scores that `align_positions` needs
    for these target frames.

    Args:
      weights: (N, H, T, S).
    """
    batch, heads, num_frames, num_sources = weights.shape
    size = block_rows(weights, heads * num_sources)  # target frames
    step = max(1, size // num_frames)
    size = min(size, num_frames)
    for n in range(0, batch, step):
        for first in range(0, num_frames, size):
            last = min(num_frames, first + size)
            columns = slice(num_frames - last, num_frames - first + num_sources)
            yield slice(n, n + step), slice(first, last), columns
