"""Batches whose loss or gradient is not finite: skipped, counted, named."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from icefall_kd.distill.term import Batch, TermOutput
from icefall_kd.training.distributed import World
from icefall_kd.training.state import TrainState

NAMED = 10  # suspects in a message
LEAST_SCALE = 1e-5  # of a loss in half precision: below, no gradient is finite


class TrainingStoppedError(RuntimeError):
    """A run cannot go on; the message has the remedy."""


class BadBatches:
    """Notes every skipped batch in ``bad_batches.<rank>.jsonl``."""

    def __init__(self, exp_dir: Path, world: World) -> None:
        self.path = exp_dir / f"bad_batches.{world.rank}.jsonl"
        self.world = world
        self._suspects: list[str] = []  # of the batches skipped in a row

    def note(
        self,
        state: TrainState,
        batch: Batch,
        loss: float,
        grad_norm: float,
        outputs: dict[str, TermOutput],
    ) -> None:
        """Count a skipped batch and write whose it was.

        Suspects are the utterances whose own loss a term found not to be finite.
        """
        state.bad_in_row += 1
        state.bad_total += 1
        ids = [cut.id for cut in batch["cuts"]]
        suspects = sorted({ids[i] for o in outputs.values() for i in o.suspects})
        if state.bad_in_row == 1:
            self._suspects.clear()
        self._suspects += suspects
        note = {
            "step": state.step,
            "epoch": state.epoch,
            "batch": state.batch,
            "rank": self.world.rank,
            "loss": str(loss),
            "grad_norm": str(grad_norm),
            "suspects": suspects,
            "cuts": ids,
        }
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps(note) + "\n")
        logging.warning(
            "batch skipped, loss %s, gradient norm %s; suspects: %s; all its cuts: %s",
            loss,
            grad_norm,
            suspects or "unknown",
            self.path,
        )

    def give_up(self, state: TrainState, base_lr: float) -> NoReturn:
        """Stop a run that does not recover; every process must call it.

        Its weights are still those before the bad batches, and finite.

        Raises:
          TrainingStoppedError: always, with the suspects and the remedy.
        """
        every = {s for suspects in self.world.gather(self._suspects) for s in suspects}
        named = ", ".join(sorted(every)[:NAMED]) or "none by their own loss"
        raise TrainingStoppedError(
            f"{state.bad_in_row} batches in a row had a loss or gradient that is not "
            f"finite; suspects ({len(every)}): {named}; all their cuts are in "
            f"{self.path.parent}/bad_batches.*.jsonl. Remove those cuts, or lower "
            f"optim.base_lr ({base_lr}); then start again: training goes on from the "
            "last checkpoint"
        )


def check_scale(scale: float, base_lr: float) -> None:
    """Refuse to go on where half precision overflows at any scale of the loss.

    Raises:
      TrainingStoppedError: with the remedy.
    """
    if scale < LEAST_SCALE:
        raise TrainingStoppedError(
            f"the gradients overflow in half precision however small the loss is made "
            f"(scaled by {scale:.3g}); the checkpoint before is whole. Lower "
            f"optim.base_lr ({base_lr}), or train with amp: bf16 or none, and start "
            "again: training goes on from there"
        )


def check_finite(weights: Iterable[Tensor], step: int, base_lr: float) -> None:
    """Refuse weights that are not finite, before a checkpoint is made of them.

    Raises:
      TrainingStoppedError: with the remedy.
    """
    if not all(torch.isfinite(w).all() for w in weights):
        raise TrainingStoppedError(
            f"the weights are not finite after update {step}; the checkpoint before is "
            f"whole. Lower optim.base_lr ({base_lr}) and start again: training goes on "
            "from there"
        )
