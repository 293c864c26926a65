"""Feed-forward module: linear, SwooshL, dropout, linear."""

import torch
from torch import Tensor, nn

from icefall_kd.zipformer.activations import swoosh_l
from icefall_kd.zipformer.norms import scaled_linear
from icefall_kd.zipformer.regularisers import Balancer, Whiten
from icefall_kd.zipformer.schedules import FloatLike, ScheduledFloat


def whitening_limit(start: float, ratio: float = 2.0) -> ScheduledFloat:
    """Return a limit for Whiten that grows ``ratio``-fold over 20000 batches."""
    return ScheduledFloat((0.0, start), (20000.0, ratio * start), default=start)


def drop_over_time(x: Tensor, rate: FloatLike, training: bool) -> Tensor:
    """Return ``x`` with whole channels of a sequence dropped, the rest scaled up.

    Args:
      x: (N, T, C); one mask serves all frames of a sequence.
      rate: share of the channels to drop.
      training: False returns ``x``.
    """
    rate = float(rate) if training else 0.0
    if rate == 0.0:
        return x
    keep = torch.rand(x.shape[0], 1, x.shape[2], device=x.device) >= rate
    return x * keep.to(x.dtype).mul_(1.0 / (1.0 - rate))


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
        x = swoosh_l(self.hidden_balancer(self.in_proj(x)))
        x = drop_over_time(x, self.dropout, self.training)
        return self.out_whiten(self.out_proj(x))
