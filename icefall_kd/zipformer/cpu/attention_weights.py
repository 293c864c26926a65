"""Softmax of attention scores by content and by position.

The scores are the largest tensors of a layer.  This kernel stores only the softmax and
computes everything else in tiles that fit a core's cache.
"""

from collections.abc import Iterator
from typing import Optional

import torch
from torch import Tensor

from icefall_kd.zipformer.cpu.blocks import get_block_rows, get_product_dtype, widen

MASKED_SCORE = -1000.0  # its weight is 0; unlike with -inf, a masked row is not NaN
# The softmax of extreme scores has no gradient.  The penalty adds a constant gradient
# to each score outside +-SCORE_LIMIT (icefall's penalize_abs_values_gt).
SCORE_LIMIT = 25.0
SCORE_PENALTY = 1e-4


def align_positions(scores: Tensor, num_sources: int) -> Tensor:
    """Return scores by source frame from scores by time difference.

    Row i of the result is row i of the input from column T - 1 - i on.  A view with
    rows that are one element shorter reads it without a copy.

    Args:
      scores: (..., T, L + 2 T), one column for each difference, see
        `CompactRelPositionalEncoding`.
      num_sources: L + T.
    Returns:
      (..., T, L + T), a view if ``scores`` is contiguous.
    """
    num_frames, width = scores.shape[-2:]
    flat = scores.flatten(-2)[..., num_frames - 1 :]
    flat = flat[..., : num_frames * (width - 1)]
    rows = flat.reshape(*scores.shape[:-2], num_frames, width - 1)
    return rows[..., :num_sources]


def compute_weights(
    query: Tensor,
    key: Tensor,
    pos_query: Optional[Tensor],
    pos_key: Optional[Tensor],
    mask: Optional[Tensor] = None,
    penalize: bool = False,
) -> Tensor:
    """Return the attention weights.

    Args:
      query: (N, H, T, D).
      key: (N, H, L + T, D).
      pos_query: (N, H, T, P); None for scores by content alone.
      pos_key: (H, P, L + 2 T), see `CompactRelPositionalEncoding`; None too.
      mask: bool, broadcasts to (N, 1, T, L + T); True for a source frame that a target
        frame must not attend to.
      penalize: whether the backward pass penalises scores outside +-`SCORE_LIMIT`.
    Returns:
      (N, H, T, L + T).
    """
    needs_grad = torch.is_grad_enabled()
    if torch.jit.is_tracing() or (query.is_cuda and not needs_grad):
        scores = query @ key.transpose(2, 3)
        if pos_query is not None:
            scores = scores + align_positions(pos_query @ pos_key, key.shape[2])
        if mask is not None:
            scores = scores.masked_fill(mask, MASKED_SCORE)
        return scores.softmax(dim=-1)
    if needs_grad:
        return _AttentionWeights.apply(query, key, pos_query, pos_key, mask, penalize)
    return _compute_by_tiles(*_cast(query, key, pos_query, pos_key), mask)


class _AttentionWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, pos_query, pos_key, mask, penalize):
        parts = _cast(query, key, pos_query, pos_key)
        excess = None
        if penalize:
            shape = (*query.shape[:3], key.shape[2])
            excess = query.new_empty(shape, dtype=torch.int8)
        weights = _compute_by_tiles(*parts, mask, excess)
        ctx.save_for_backward(*parts, weights, excess)
        return weights

    @staticmethod
    def backward(ctx, grad):
        query, key, pos_query, pos_key, weights, excess = ctx.saved_tensors
        grad_query = torch.empty_like(query)
        grad_key = widen(torch.zeros_like(key))
        grad_pos_query = grad_pos_key = None
        if pos_query is not None:
            grad_pos_query = torch.empty_like(pos_query)
            grad_pos_key = widen(torch.zeros_like(pos_key))
        for seqs, rows, columns in _tiles(weights):
            wide = widen(weights[seqs, :, rows])
            # Masked scores have weight 0 and gradient 0.
            g = widen(grad[seqs, :, rows])
            g = torch._softmax_backward_data(g, wide, -1, wide.dtype)
            if excess is not None:
                g.add_(excess[seqs, :, rows], alpha=SCORE_PENALTY)
            if pos_query is not None:
                by_offset = query.new_zeros(*g.shape[:3], g.shape[2] + g.shape[3])
                align_positions(by_offset, g.shape[-1]).copy_(g)
                pos_key_tile = pos_key[..., columns].transpose(-2, -1)
                grad_pos_query[seqs, :, rows] = by_offset @ pos_key_tile
                part = pos_query[seqs, :, rows].transpose(-2, -1) @ by_offset
                grad_pos_key[..., columns] += part.sum(0)
            g = g.to(query.dtype)
            grad_query[seqs, :, rows] = g @ key[seqs]
            grad_key[seqs] += g.transpose(-2, -1) @ query[seqs, :, rows]
        grad_key = grad_key.to(key.dtype)
        if grad_pos_key is not None:
            grad_pos_key = grad_pos_key.to(pos_key.dtype)
        return grad_query, grad_key, grad_pos_query, grad_pos_key, None, None


def _cast(*parts: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
    """Return contiguous tensors in the dtype of products.

    Products of tiles would copy parts that are not contiguous.
    """
    dtype = get_product_dtype(parts[0])
    return tuple(None if p is None else p.to(dtype).contiguous() for p in parts)


def _compute_by_tiles(
    query: Tensor,
    key: Tensor,
    pos_query: Optional[Tensor],
    pos_key: Optional[Tensor],
    mask: Optional[Tensor],
    excess: Optional[Tensor] = None,
) -> Tensor:
    """Return the weights; see `compute_weights`.

    Args:
      excess: (N, H, T, L + T) int8, set to the sign of the scores outside
        +-`SCORE_LIMIT`, 0 for the others; None skips this.
    """
    weights = query.new_empty(*query.shape[:3], key.shape[2])
    if mask is not None:
        mask = mask.expand(weights.shape[0], 1, *weights.shape[2:])
    with torch.autocast(query.device.type, enabled=False):
        for seqs, rows, columns in _tiles(weights):
            scores = widen(query[seqs, :, rows] @ key[seqs].transpose(-2, -1))
            if pos_query is not None:
                by_offset = pos_query[seqs, :, rows] @ pos_key[..., columns]
                scores.add_(align_positions(by_offset, scores.shape[-1]))
            if excess is not None:
                above, below = scores > SCORE_LIMIT, scores < -SCORE_LIMIT
                excess[seqs, :, rows] = above.to(torch.int8) - below.to(torch.int8)
            if mask is not None:
                _mask_scores(scores, mask[seqs, :, rows])
            weights[seqs, :, rows] = scores.softmax(dim=-1)
    return weights


def _mask_scores(scores: Tensor, mask: Tensor) -> None:
    """Set the scores to `MASKED_SCORE` where the mask is True."""
    if scores.is_cuda:
        scores.masked_fill_(mask, MASKED_SCORE)
    else:  # arithmetic is at least twice as fast as masked_fill_ on a CPU
        scores.add_(mask.to(scores.dtype), alpha=2.0 * MASKED_SCORE)
        scores.clamp_(min=MASKED_SCORE)


def _tiles(weights: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Yield (sequences, target frames, columns) of each tile; one tile on a GPU.

    The columns are those of the position scores that `align_positions` needs for these
    target frames.

    Args:
      weights: (N, H, T, S).
    """
    batch, heads, num_frames, num_sources = weights.shape
    size = get_block_rows(weights, heads * num_sources)  # target frames
    step = max(1, size // num_frames)
    size = min(size, num_frames)
    for n in range(0, batch, step):
        for first in range(0, num_frames, size):
            last = min(num_frames, first + size)
            columns = slice(num_frames - last, num_frames - first + num_sources)
            yield slice(n, n + step), slice(first, last), columns
