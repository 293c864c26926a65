"""Frames of kind ``ctc``: the k most probable tokens and what the others share.

A frame is 2 k + 1 float32: k token ids, best first, their k log-probabilities in
nats, and the probability mass of all other tokens.  Ids below 2^24 are exact in
float32.
"""

from typing import Tuple

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


def split_topk(x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Return (ids int64 (..., k), log-probabilities (..., k), tail mass (...)).

    Args:
      x: (..., 2 k + 1) float32, as :func:`take_topk` makes it.
    """
    k = x.size(-1) // 2
    return x[..., :k].round().to(torch.int64), x[..., k : 2 * k], x[..., -1]
