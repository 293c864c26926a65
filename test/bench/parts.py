"""Processor seconds of each part of a training step.

The forward pass is measured by wrapping the modules, the backward pass by identity
functions around them in the autograd graph.  A part excludes the parts inside it.
"""

import statistics
import time
from collections import Counter
from typing import Any, Callable

import torch
from torch import Tensor, nn

# Class -> part; nested modules count for the innermost part.
PARTS = {
    "Conv2dSubsampling": "front end",
    "Zipformer2": "rest of the encoder",  # norms, bypasses, resampling, sums
    "RelPositionMultiheadAttentionWeights": "attention weights",
    "SelfAttention": "attention",
    "NonlinAttention": "attention",
    "FeedforwardModule": "feed-forward",
    "ConvolutionModule": "convolution",
    "Balancer": "regularisers",
    "Whiten": "regularisers",
}
OUTSIDE = "predictor, joiner, losses"


class Stopwatch:
    """Adds processor seconds to the part that was entered last."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Reset all counts."""
        self.seconds: Counter = Counter()
        self.inside: list[str] = []
        self.since = time.process_time()

    def enter(self, part: str) -> None:
        """Count time for ``part``."""
        self._count()
        self.inside.append(part)

    def leave(self) -> None:
        """Count time for the enclosing part."""
        self._count()
        if self.inside:
            self.inside.pop()

    def leave_all(self) -> None:
        """Count time outside all parts."""
        self._count()
        self.inside.clear()

    def _count(self) -> None:
        now = time.process_time()
        part = self.inside[-1] if self.inside else OUTSIDE
        self.seconds[part] += now - self.since
        self.since = now


class _Pass(torch.autograd.Function):
    """Identity whose backward pass calls a function."""

    @staticmethod
    def forward(ctx, call: Callable[[], None], *tensors: Tensor):
        ctx.set_materialize_grads(False)
        ctx.call = call
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx, *grads):
        ctx.call()
        return (None, *grads)


def _insert_call(call: Callable[[], None], values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return ``values``; the backward pass of their tensors calls ``call`` once."""
    indices = [
        i for i, v in enumerate(values) if isinstance(v, Tensor) and v.requires_grad
    ]
    if not indices:
        return values
    passed = iter(_Pass.apply(call, *(values[i] for i in indices)))
    return tuple(next(passed) if i in indices else v for i, v in enumerate(values))


def watch(stopwatch: Stopwatch, module: nn.Module, part: str) -> None:
    """Measure a module in both passes."""
    inner = module.forward

    def forward(*args, **kwargs):
        stopwatch.enter(part)
        # The backward pass enters a module at its outputs and leaves at its inputs.
        out = inner(*_insert_call(stopwatch.leave, args), **kwargs)
        several = out if isinstance(out, tuple) else (out,)
        several = _insert_call(lambda: stopwatch.enter(part), several)
        stopwatch.leave()
        return several if isinstance(out, tuple) else several[0]

    module.forward = forward


def profile(
    turn: Callable[[], float],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rounds: int,
) -> dict[str, float]:
    """Return the median processor seconds of each part, the largest first.

    Args:
      turn: runs a step; the wrappers of model and optimiser stay.
    """
    stopwatch = Stopwatch()
    for module in model.modules():
        part = PARTS.get(type(module).__name__)
        if part is not None:
            watch(stopwatch, module, part)
    step = optimizer.step

    def optimise(*args):
        stopwatch.leave_all()  # features have no gradient, so the front end stays open
        stopwatch.enter("optimiser")
        step(*args)
        stopwatch.leave()

    optimizer.step = optimise
    found: list[Counter] = []
    for _ in range(rounds + 2):  # 2 warm-up rounds
        stopwatch.restart()
        turn()
        stopwatch.leave_all()
        found.append(stopwatch.seconds)
    medians = {
        part: statistics.median(seconds[part] for seconds in found[2:])
        for part in set().union(*found)
    }
    return dict(sorted(medians.items(), key=lambda item: -item[1]))
