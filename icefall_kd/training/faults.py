"""Batches whose loss or gradient is not finite: skipped, counted, named."""

import json
import logging
from pathlib import Path
from typing import NoReturn

from icefall_kd.distill.term import Batch, TermOutput
from icefall_kd.training.state import TrainState


class TrainingStoppedError(RuntimeError):
    """A run cannot go on; the message has the remedy."""


class BadBatches:
    """Notes every skipped batch in ``bad_batches.<rank>.jsonl``."""

    def __init__(self, exp_dir: Path, rank: int) -> None:
        self.path = exp_dir / f"bad_batches.{rank}.jsonl"
        self.rank = rank

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
        note = {
            "step": state.step,
            "epoch": state.epoch,
            "batch": state.batch,
            "rank": self.rank,
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
        """Stop a run that does not recover; its weights are still finite.

        Raises:
          TrainingStoppedError: always, with the remedy.
        """
        raise TrainingStoppedError(
            f"{state.bad_in_row} batches in a row had a loss or gradient that is not "
            f"finite; their cuts are in {self.path}. Remove those cuts, or lower "
            f"optim.base_lr ({base_lr}); then start again: training goes on from the "
            "last checkpoint"
        )
