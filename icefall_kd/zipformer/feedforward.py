"""Feed-forward module: linear, SwooshL, dropout, linear."""

from typing import Optional

import torch
from torch import Tensor, nn

from icefall_kd.zipformer.norms import scaled_linear
from icefall_kd.zipformer.pointwise import pointwise_pair
from icefall_kd.zipformer.regularisers import Balancer, Whiten
from icefall_kd.zipformer.schedules import FloatLike, ScheduledFloat


def whitening_limit(start: float, ratio: float = 2.0) -> ScheduledFloat:
    """Return a limit for Whiten that grows ``ratio``-fold over 20000 batches."""
    return ScheduledFloat((0.0, start), (20000.0, ratio * start), default=start)


def keep_channels(
    x: Tensor, channels: int, rate: FloatLike, training: bool
) -> Optional[Tensor]:
    """Return the dropout of whole channels of a sequence, None where there is none.

    Args:
      x: (N, T, C), for N and the dtype; one mask serves all frames of a sequence.
      channels: C'.
      rate: share of the channels to drop.
    Returns:
      (N, 1, C'), 0 or 1 / (1 - rate).
    """
    rate = float(rate) if training else 0.0
    if rate == 0.0:
        return None
    keep = torch.rand(x.shape[0], 1, channels, device=x.device) >= rate
    return keep.to(x.dtype).mul_(1.0 / (1.0 - rate))


class FeedForward(nn.Module):
    """Feed-forward module of a Zipformer layer; (N, T, C) to the same shape."""

    def __init__(self, channels: int, hidden: int, dropout: FloatLike) -> None:
        super().__init__()
        self.in_proj = nn.Linear(channels, hidden)
        self.hidden_balancer = Balancer(
            min_positive=0.3, max_positive=1.0, min_abs=0.75, max_abs=5.0
        )
        self.dropout = dropout
        self.out_proj = scaled_linear(hidden, channels, initial_scale=0.1)
        self.out_whiten = Whiten(1, whitening_limit(7.5), grad_scale=0.01)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.in_proj.out_features
        keep = keep_channels(x, hidden, self.dropout, self.training)
        x = pointwise_pair(x, self.in_proj, self.out_proj, self.hidden_balancer, keep)
        return self.out_whiten(x)
