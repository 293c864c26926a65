"""What changes while training runs, and how it is kept and brought back."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from icefall_kd.zipformer.regularisers import Whiten


@dataclass
class TrainState:
    """Progress of a run.

    Attributes:
      step: updates made.
      epoch: epochs finished.
      batch: batches taken from the present epoch, skipped ones included.
      validating: the present epoch has no batch left and waits for its validation.
      bad_in_row: consecutive batches skipped for a loss or gradient that is not
        finite.
      bad_total: all batches skipped.
      samples_before: samples of the averaged model before the present epoch.
      untrained: heads of the student that were random when the run began, although it
        began from ``init_model``.
      audio: s of audio taken in all epochs, over all processes.
      seconds: s of wall time spent in all sessions of the run.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    validating: bool = False
    bad_in_row: int = 0
    bad_total: int = 0
    samples_before: int = 0
    untrained: list[str] = field(default_factory=list)
    audio: float = 0.0
    seconds: float = 0.0


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """Return all random states as tensors and plain types."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Undo :func:`rng_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    keys = np.array(keys, dtype=np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        # There may be fewer devices than there were.
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


def regulariser_state(model: nn.Module) -> dict[str, float]:
    """Return how often each Whiten looks; it depends on what it saw last."""
    return {k: m.prob for k, m in model.named_modules() if isinstance(m, Whiten)}


def restore_regularisers(model: nn.Module, state: Mapping[str, float]) -> None:
    """Undo :func:`regulariser_state`."""
    for name, module in model.named_modules():
        if isinstance(module, Whiten):
            module.prob = state[name]
