"""Frames of kinds ``ctc`` and ``path``: the k most probable tokens, and the rest.

A frame of kind ``ctc`` is 2 k + 1 float32: k token ids, best first, their k
log-probabilities in nats, and the probability mass of all other tokens.  A frame of
kind ``path`` has one more before these: the token that the one-best path of a
transducer emits there, 0 for the blank; the distribution is the joiner's at the node
where the path crosses the frame.  Ids below 2^24 are exact in float32.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def take_topk(log_probs: Tensor, k: int) -> Tensor:
    """Return the frames of kind ``ctc`` for a distribution.

    Args:
      log_probs: (..., V) float, normalised, natural logarithm.
      k: 1 <= k <= V.
    Returns:
      (..., 2 k + 1) float32.
    Raises:
      ValueError: if k is out of range.
    """
    if not 1 <= k <= log_probs.size(-1):
        raise ValueError(f"k is {k}, must be in 1 .. {log_probs.size(-1)} (tokens)")
    values, ids = log_probs.float().topk(k, dim=-1)
    tail = (1.0 - values.exp().sum(dim=-1, keepdim=True)).clamp(min=0.0)
    # The least that half precision holds: a token of no probability is no -inf.
    values = values.clamp(min=-65504.0)
    return torch.cat([ids.float(), values, tail], dim=-1)


def split_topk(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (ids int64 (..., k), log-probabilities (..., k), tail mass (...)).

    Args:
      x: (..., 2 k + 1) float32, as :func:`take_topk` makes it.
    """
    k = x.size(-1) // 2
    return x[..., :k].round().to(torch.int64), x[..., k : 2 * k], x[..., -1]


def join_path(emitted: Tensor, frames: Tensor) -> Tensor:
    """Return the frames of kind ``path``.

    Args:
      emitted: (...) int64, token of each frame, 0 for the blank.
      frames:  (..., 2 k + 1) float32, as :func:`take_topk` makes them.
    Returns:
      (..., 2 k + 2) float32.
    """
    return torch.cat([emitted.unsqueeze(-1).float(), frames], dim=-1)


def split_path(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (emitted int64 (...), frames (..., 2 k + 1)) of kind ``path``."""
    return x[..., 0].round().to(torch.int64), x[..., 1:]


def mean_probs(
    frames: Sequence[Tensor], weights: Sequence[float], vocab_size: int
) -> Tensor:
    """Return the weighted mean of distributions of one vocabulary, (..., V) float32.

    Each token that a frame does not tell gets an equal share of its tail, which is the
    mean of what these tokens had.

    Args:
      frames:  each (..., 2 k' + 1), of kind ``ctc``.
      weights: of sum 1.
    """
    mean = frames[0].new_zeros(*frames[0].shape[:-1], vocab_size)
    for x, weight in zip(frames, weights):
        ids, log_probs, tail = split_topk(x)
        others = max(1, vocab_size - ids.shape[-1])
        probs = (tail / others).unsqueeze(-1).expand_as(mean)
        mean += weight * probs.scatter(-1, ids, log_probs.exp())
    return mean


def mean_of_topk(
    frames: Sequence[Tensor], weights: Sequence[float], vocab_size: int, k: int
) -> Tensor:
    """Return :func:`mean_probs` as frames of kind ``ctc``, (..., 2 k + 1) float32."""
    return take_topk(mean_probs(frames, weights, vocab_size).log(), k)
