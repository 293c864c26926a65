"""Gradients between the backward pass and the optimiser."""

from typing import Any

import torch
from torch import nn


def make_scaler(enabled: bool) -> Any:
    """Return torch's scaler of gradients, under the name that this torch has.

    It begins at 1, as icefall's: a loss that is summed over the frames of a batch has
    large gradients, and torch's 65536 would overflow in the first updates.
    """
    if hasattr(torch.amp, "GradScaler"):  # from torch 2.3 on
        return torch.amp.GradScaler("cuda", init_scale=1.0, enabled=enabled)
    return torch.cuda.amp.GradScaler(init_scale=1.0, enabled=enabled)


def clip_gradients(params: list[nn.Parameter], limit: float) -> float:
    """Return the 2-norm of all gradients; scale them down to ``limit`` if above.

    Args:
      limit: 0 is none.
    """
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        return 0.0
    norm = torch.stack(torch._foreach_norm(grads)).float().norm().item()
    if limit and norm > limit:
        torch._foreach_mul_(grads, limit / norm)
    return norm
