"""Cuts that are not trained on: skipped, counted, named."""

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
from icefall_kd.training.state import TrainState

NAMED = 10  # suspects in a message
EARLY = 1000  # cuts after which a term that used none ends the run within the epoch

# Why a cut is skipped, beside the reasons of the terms.
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
    NOT_FINITE: "bad_batches.*.jsonl in exp_dir has their batches",
    OVERFLOW: "train with amp: bf16 or none",
}
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


class SkippedCuts:
    """Counts the cuts of an epoch that a term did not train on, by reason."""

    def __init__(self, terms: Sequence[str], world: World, missing: str) -> None:
        """Begin with nothing counted.

        Args:
          terms: names of the terms.
          missing: ``data.missing``; "skip" allows cuts without a target.
        """
        self.terms, self.world = tuple(terms), world
        self._counts: Counter[str] = Counter()  # of this process
        self._examples: dict[str, list[str]] = {}
        # What a configuration asks for, or half precision brings, is no fault.
        self._allowed = {UNLABELLED, OVERFLOW}
        if missing == "skip":
            self._allowed.add(NO_TARGET)

    def add(
        self, batch: Batch, outputs: Mapping[str, TermOutput], reason: str = ""
    ) -> None:
        """Count a batch.

        Args:
          reason: why the whole batch was skipped; "" if it was trained on.
        """
        cuts = list(batch["cuts"])
        self._counts["cuts"] += len(cuts)
        for term in self.terms:
            skipped = {reason: range(len(cuts))} if reason else outputs[term].skipped
            for why, rows in skipped.items():
                for cut in (cuts[i] for i in rows):
                    bare = why == NO_TEXT and not cut.supervisions
                    key = f"{term}.{UNLABELLED if bare else why}"
                    self._counts[key] += 1
                    examples = self._examples.setdefault(key, [])
                    if len(examples) < NAMED // 2:
                        examples.append(cut.id)

    def state(self) -> dict[str, int]:
        """Return the counts of all processes; every process must call it."""
        return dict(sum(self.world.gather(self._counts), Counter()))

    def load(self, state: Mapping[str, int]) -> None:
        """Go on from :meth:`state`."""
        self._counts = Counter(state if self.world.is_main else {})

    def end_epoch(self, epoch: int, batches: int) -> dict[str, float]:
        """Return the epoch's cuts and the shares that were skipped; begin the next.

        Every process must call it.

        Args:
          epoch: counted from 1.
          batches: of the epoch; some may have been counted by an older version, whose
            checkpoint the run went on from.
        Returns:
          "cuts" -> their number, "<term>.skipped.<reason>" -> share of them.
        Raises:
          TrainingStoppedError: as :meth:`check`, or if there was no cut.
        """
        counts = self.state()
        cuts = counts.pop("cuts", 0)
        if not batches:
            raise TrainingStoppedError(
                f"epoch {epoch} had no batch: data.train has fewer cuts than the "
                f"{self.world.size} processes of this run; use more cuts or fewer "
                "processes"
            )
        self.check(epoch)
        self._counts.clear()
        self._examples.clear()
        shares = {"cuts": float(cuts)}
        for key in sorted(counts):
            term, _, why = key.partition(".")
            shares[f"{term}.skipped.{why}"] = counts[key] / cuts
        return shares

    def check(self, epoch: int, complete: bool = True) -> None:
        """Refuse an epoch that taught a term nothing; every process must call it.

        That is one of which the term used no cut, or skipped over half of those that
        it should have used: all but cuts without a supervision and, with
        ``data.missing: skip``, without a target.

        Args:
          epoch: counted from 1.
          complete: whether the epoch has ended.  Within it, a term must have used none
            of at least 1000 cuts.
        Raises:
          TrainingStoppedError: with counts, examples and remedies.
        """
        counts = self.state()
        cuts = counts.get("cuts", 0)
        if not complete and cuts < EARLY:
            return
        for term in self.terms:
            skipped = _reasons(counts, term)
            allowed = sum(n for why, n in skipped.items() if why in self._allowed)
            faults = sum(skipped.values()) - allowed
            none_used = faults + allowed == cuts > 0
            if none_used or (complete and faults > (cuts - allowed) / 2):
                raise TrainingStoppedError(self._describe(epoch, term, skipped, cuts))

    def unused(self) -> dict[str, dict[str, int]]:
        """Return reason -> count of each term that used no cut.

        Every process must call it.
        """
        counts = self.state()
        reasons = {term: _reasons(counts, term) for term in self.terms}
        cuts = counts.get("cuts", 0)
        return {t: why for t, why in reasons.items() if sum(why.values()) == cuts > 0}

    def _describe(
        self, epoch: int, term: str, skipped: Mapping[str, int], cuts: int
    ) -> str:
        """Return the message about a term; every process must call it."""
        examples = self.world.gather(self._examples)
        parts = []
        for why, count in sorted(skipped.items(), key=lambda item: -item[1]):
            named = [i for e in examples for i in e.get(f"{term}.{why}", ())]
            some = f", for example {', '.join(named[: NAMED // 2])}" if named else ""
            parts.append(f"{why}: {count}{some} ({REMEDIES[why]})")
        return (
            f"epoch {epoch}: term '{term}' skipped {sum(skipped.values())} of {cuts} "
            f"cuts, so no checkpoint of this epoch is written; " + "; ".join(parts)
        )


def _reasons(counts: Mapping[str, int], term: str) -> dict[str, int]:
    """Return reason -> count of one term."""
    return {
        key.partition(".")[2]: count
        for key, count in counts.items()
        if key.startswith(f"{term}.")
    }


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
