"""Batches and cuts that training skips, and conditions that stop a run."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from icefall_kd.core.distributed import World
from icefall_kd.core.frames import Batch
from icefall_kd.distill.term import NO_TARGET, NO_TEXT, TOO_LONG, TOO_SHORT, TermOutput
from icefall_kd.training.checkpoint import TrainState
from icefall_kd.training.updates import TrainedBatch

MAX_SUSPECTS = 10  # cut ids in a message
MAX_EXAMPLES = 5  # cut ids for each reason
EARLY_CUTS = 1000  # cuts after which a term that used none stops the run mid-epoch
MIN_LOSS_SCALE = 1e-5  # of fp16; below it no gradient is finite

# Reasons in addition to those of the terms.
UNLABELLED = "unlabelled"  # no supervision, as in an unlabelled set
NOT_FINITE = "not_finite"
OVERFLOW = "overflow"
REMEDIES = {
    NO_TEXT: "give the cuts transcripts, or drop them with bin.make_shar",
    TOO_LONG: "their texts need more frames of 40 ms than they have: drop them with "
    "bin.make_shar, or use a larger vocabulary",
    NO_TARGET: "extract the fields of the term with bin.extract",
    TOO_SHORT: "lower the delay of the term",
    UNLABELLED: "add a set with transcripts, or leave the term out",
    NOT_FINITE: "see bad_batches.*.jsonl in exp_dir for their batches",
    OVERFLOW: "train with amp: bf16 or none",
}


class TrainingStoppedError(RuntimeError):
    """A run cannot continue; the message has a remedy."""


class BadBatches:
    """Writes batches of skipped updates to bad_batches.<rank>.jsonl.

    An update is skipped with all its batches if the loss of one of them, or the
    gradient, is not finite in any process.
    """

    def __init__(self, exp_dir: Path, world: World) -> None:
        self.path = exp_dir / f"bad_batches.{world.rank}.jsonl"
        self.world = world
        self._suspects: list[str] = []  # ids in the current series of skipped updates

    def add(
        self, state: TrainState, trained: Sequence[TrainedBatch], grad_norm: float
    ) -> None:
        """Count a skipped update and write the cuts of its batches.

        The suspects are the cuts whose loss in a term is not finite.
        """
        state.bad_in_row += 1
        state.bad_total += 1
        if state.bad_in_row == 1:
            self._suspects.clear()
        losses = [float(b.loss) for b in trained]
        found: list[str] = []
        for b, loss in zip(trained, losses):
            ids = [cut.id for cut in b.batch["cuts"]]
            suspects = sorted({ids[i] for o in b.outputs.values() for i in o.suspects})
            found += suspects
            line = {
                "step": state.step,
                "epoch": state.epoch,
                "batch": b.number,
                "rank": self.world.rank,
                "loss": str(loss),
                "grad_norm": str(grad_norm),
                "suspects": suspects,
                "cuts": ids,
            }
            with open(self.path, "a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")
        self._suspects += found
        logging.warning(
            "skipped an update with loss %s and gradient norm %s; suspects: %s; all "
            "its cuts: %s",
            ", ".join(map(str, losses)),
            grad_norm,
            found or "unknown",
            self.path,
        )

    def stop_run(self, state: TrainState, base_lr: float) -> NoReturn:
        """Stop a run with too many skipped updates; every process must call it.

        The weights are those before the skipped updates, and finite.

        Raises:
          TrainingStoppedError: always.
        """
        ids = {s for suspects in self.world.gather(self._suspects) for s in suspects}
        named = ", ".join(sorted(ids)[:MAX_SUSPECTS]) or "no cut has a non-finite loss"
        raise TrainingStoppedError(
            f"{state.bad_in_row} updates in a row had a non-finite loss or gradient; "
            f"{len(ids)} suspects: {named}; all cuts: "
            f"{self.path.parent}/bad_batches.*.jsonl. Remove these cuts, or lower "
            f"optim.base_lr ({base_lr}), and start again: training resumes from the "
            "last checkpoint."
        )


class SkippedCuts:
    """Counts the cuts of an epoch that each term skips, by reason."""

    def __init__(self, terms: Sequence[str], world: World, missing: str) -> None:
        """Start with empty counts.

        Args:
          terms: names of the terms.
          missing: ``data.missing``; "skip" allows cuts without a target.
        """
        self.terms, self.world = tuple(terms), world
        self._counts: Counter[str] = Counter()  # of this process
        self._examples: dict[str, list[str]] = {}
        # The configuration asks for these skips, or half precision causes them.
        self._allowed = {UNLABELLED, OVERFLOW}
        if missing == "skip":
            self._allowed.add(NO_TARGET)

    def add(
        self, batch: Batch, outputs: Mapping[str, TermOutput], batch_reason: str = ""
    ) -> None:
        """Count the cuts of a batch, and those that each term skipped.

        Args:
          batch_reason: why all cuts of the batch were skipped; "" if they were not.
        """
        cuts = list(batch["cuts"])
        self._counts["cuts"] += len(cuts)
        for term in self.terms:
            skipped = outputs[term].skipped
            if batch_reason:
                skipped = {batch_reason: range(len(cuts))}
            for reason, rows in skipped.items():
                for cut in (cuts[i] for i in rows):
                    is_unlabelled = reason == NO_TEXT and not cut.supervisions
                    key = f"{term}.{UNLABELLED if is_unlabelled else reason}"
                    self._counts[key] += 1
                    examples = self._examples.setdefault(key, [])
                    if len(examples) < MAX_EXAMPLES:
                        examples.append(cut.id)

    def state_dict(self) -> dict[str, int]:
        """Return the counts of all processes; every process must call it."""
        return dict(sum(self.world.gather(self._counts), Counter()))

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self._counts = Counter(state if self.world.is_main else {})

    def end_epoch(self, epoch: int, batches: int) -> dict[str, float]:
        """Return the shares of skipped cuts in the epoch, and reset the counts.

        Every process must call it.

        Args:
          epoch: counted from 1.
          batches: number of batches in the epoch.  A run resumed from a checkpoint of
            an older version may have batches, but no counts.
        Returns:
          "cuts" -> number of cuts, "<term>.skipped.<reason>" -> share of them.
        Raises:
          TrainingStoppedError: see :meth:`check`; or if the epoch had no batch.
        """
        counts = self.state_dict()
        cuts = counts.pop("cuts", 0)
        if not batches:
            raise TrainingStoppedError(
                f"epoch {epoch} had no batch: data.train has fewer cuts than the "
                f"{self.world.size} processes of this run. Use more cuts or fewer "
                "processes."
            )
        self.check(epoch)
        self._counts.clear()
        self._examples.clear()
        shares = {"cuts": float(cuts)}
        for key in sorted(counts):
            term, _, reason = key.partition(".")
            shares[f"{term}.skipped.{reason}"] = counts[key] / cuts
        return shares

    def check(self, epoch: int, complete: bool = True) -> None:
        """Stop a run in which a term uses no cut, or skips more than half of its cuts.

        The half is counted without cuts that have no supervision and, with
        ``data.missing: skip``, without cuts that have no target.  Every process must
        call it.

        Args:
          epoch: counted from 1.
          complete: True at the end of the epoch.  Before it, only a term that used
            none of at least 1000 cuts stops the run.
        Raises:
          TrainingStoppedError: with counts, examples and remedies.
        """
        counts = self.state_dict()
        cuts = counts.get("cuts", 0)
        if not complete and cuts < EARLY_CUTS:
            return
        for term in self.terms:
            skipped = _reasons(counts, term)
            total = sum(skipped.values())
            allowed = sum(n for reason, n in skipped.items() if reason in self._allowed)
            is_unused = total == cuts > 0
            if is_unused or (complete and total - allowed > (cuts - allowed) / 2):
                raise TrainingStoppedError(self._describe(epoch, term, skipped, cuts))

    def unused(self) -> dict[str, dict[str, int]]:
        """Return {term: {reason: count}} of the terms that used no cut.

        Every process must call it.
        """
        counts = self.state_dict()
        reasons = {term: _reasons(counts, term) for term in self.terms}
        cuts = counts.get("cuts", 0)
        return {t: r for t, r in reasons.items() if sum(r.values()) == cuts > 0}

    def _describe(
        self, epoch: int, term: str, skipped: Mapping[str, int], cuts: int
    ) -> str:
        """Return the error message about a term; every process must call it."""
        examples = self.world.gather(self._examples)
        parts = []
        for reason, count in sorted(skipped.items(), key=lambda item: -item[1]):
            ids = [i for e in examples for i in e.get(f"{term}.{reason}", ())]
            some = f", for example {', '.join(ids[:MAX_EXAMPLES])}" if ids else ""
            parts.append(f"{reason}: {count}{some} ({REMEDIES[reason]})")
        return (
            f"epoch {epoch}: term '{term}' skipped {sum(skipped.values())} of {cuts} "
            f"cuts, so this epoch gets no checkpoint; " + "; ".join(parts)
        )


def _reasons(counts: Mapping[str, int], term: str) -> dict[str, int]:
    """Return reason -> count of one term."""
    return {
        key.partition(".")[2]: count
        for key, count in counts.items()
        if key.startswith(f"{term}.")
    }


def check_loss_scale(scale: float, base_lr: float) -> None:
    """Stop a run whose fp16 gradients overflow at every loss scale.

    Raises:
      TrainingStoppedError: if ``scale`` is below 1e-5.
    """
    if scale < MIN_LOSS_SCALE:
        raise TrainingStoppedError(
            f"amp: fp16 gradients overflow even at loss scale {scale:.3g}. Lower "
            f"optim.base_lr ({base_lr}), or train with amp: bf16 or none, and start "
            "again: training resumes from the last checkpoint."
        )


def check_finite(weights: Iterable[Tensor], step: int, base_lr: float) -> None:
    """Stop a run before it saves weights that are not finite.

    Raises:
      TrainingStoppedError: if any weight is not finite.
    """
    if not all(torch.isfinite(w).all() for w in weights):
        raise TrainingStoppedError(
            f"the weights are not finite after update {step}. Lower optim.base_lr "
            f"({base_lr}) and start again: training resumes from the last checkpoint."
        )
