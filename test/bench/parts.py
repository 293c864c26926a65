"""Which part of the student a training step spends its time in.

Modules and the optimiser are watched from outside: forward by wrapping their calls,
backward by identity functions put around them in the graph, which the engine passes on
its way.  A part's seconds do not include those of the parts inside it.
"""

import statistics
import time
from collections import Counter
from typing import Any, Callable

import torch
from torch import Tensor, nn

# Class name -> part; the innermost one counts.
PARTS = {
    "Conv2dSubsampling": "front end",
    "Zipformer2": "rest of the encoder",  # norms, bypasses, changes of rate, sums
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
    """Attributes processor seconds to the part that is entered last."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what was counted."""
        self.seconds: Counter = Counter()
        self.inside: list[str] = []
        self.since = time.process_time()

    def enter(self, part: str) -> None:
        """From now on time is of ``part``."""
        self._count()
        self.inside.append(part)

    def leave(self) -> None:
        """From now on time is of the part around the last one."""
        self._count()
        if self.inside:
            self.inside.pop()

    def leave_all(self) -> None:
        """From now on time is of no part that is watched."""
        self._count()
        self.inside.clear()

    def _count(self) -> None:
        now = time.process_time()
        part = self.inside[-1] if self.inside else OUTSIDE
        self.seconds[part] += now - self.since
        self.since = now


class _Pass(torch.autograd.Function):
    """The identity; its backward calls a function on the way."""

    @staticmethod
    def forward(ctx, call: Callable[[], None], *tensors: Tensor):
        ctx.set_materialize_grads(False)
        ctx.call = call
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx, *grads):
        ctx.call()
        return (None, *grads)


def _put(call: Callable[[], None], values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return ``values``, the backward of whose tensors calls ``call`` once."""
    places = [
        i for i, v in enumerate(values) if isinstance(v, Tensor) and v.requires_grad
    ]
    if not places:
        return values
    passed = iter(_Pass.apply(call, *(values[i] for i in places)))
    return tuple(next(passed) if i in places else v for i, v in enumerate(values))


def watch(stopwatch: Stopwatch, module: nn.Module, part: str) -> None:
    """Note when the module is entered and left, in both directions."""
    inner = module.forward

    def forward(*args, **kwargs):
        stopwatch.enter(part)
        # Backward leaves a module where its inputs are, and enters at its outputs.
        out = inner(*_put(stopwatch.leave, args), **kwargs)
        several = out if isinstance(out, tuple) else (out,)
        several = _put(lambda: stopwatch.enter(part), several)
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
      turn: takes a step; the model and the optimiser stay watched.
    """
    stopwatch = Stopwatch()
    for module in model.modules():
        part = PARTS.get(type(module).__name__)
        if part is not None:
            watch(stopwatch, module, part)
    step = optimizer.step

    def optimise(*args):
        stopwatch.leave_all()  # the features' gradient is not needed: no way out
        stopwatch.enter("optimiser")
        step(*args)
        stopwatch.leave()

    optimizer.step = optimise
    found: list[Counter] = []
    for _ in range(rounds + 2):  # the first allocate
        stopwatch.restart()
        turn()
        stopwatch.leave_all()
        found.append(stopwatch.seconds)
    medians = {
        part: statistics.median(seconds[part] for seconds in found[2:])
        for part in set().union(*found)
    }
    return dict(sorted(medians.items(), key=lambda item: -item[1]))
