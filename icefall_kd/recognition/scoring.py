"""Word errors, and the files that report them in icefall's form.

recogs-<set>-<suffix>.txt       reference and hypothesis of every utterance
errs-<set>-<suffix>.txt         the errors, utterance by utterance and word by word
wer-summary-<set>-<suffix>.txt  the figure
result-<set>-<suffix>.json      the same for machines, with its bootstrap interval

A set without transcripts has recogs-, result- (its WER is null) and

hyps-<set>-<suffix>.txt         id and hypothesis of every utterance, as Kaldi's text
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Union

import numpy as np

NO_WORD = "*"  # stands opposite an inserted or a deleted word
Alignment = list[tuple[str, str]]


@dataclass(frozen=True)
class Recognition:
    """What was said and what was recognised in one utterance, as words.

    Attributes:
      frames: of the encoder's output (40 ms each), in which the last token of each
        word of ``hyp`` was emitted; empty where that is not known.
    """

    cut_id: str
    ref: list[str]
    hyp: list[str]
    frames: list[int] = field(default_factory=list, compare=False)


@dataclass
class ErrorCounts:
    """Errors of a set of utterances, in words."""

    ins: int = 0
    dels: int = 0
    sub: int = 0
    correct: int = 0

    @property
    def errors(self) -> int:
        return self.ins + self.dels + self.sub

    @property
    def words(self) -> int:
        """Words of the reference."""
        return self.correct + self.dels + self.sub

    @property
    def wer(self) -> float:
        """Word error rate in percent.

        Raises:
          ValueError: if the reference has no words.
        """
        if self.words == 0:
            raise ValueError("no transcripts: a WER needs reference words")
        return 100 * self.errors / self.words

    def add(self, alignment: Alignment) -> None:
        """Count the pairs of one utterance."""
        for ref, hyp in alignment:
            if ref == NO_WORD:
                self.ins += 1
            elif hyp == NO_WORD:
                self.dels += 1
            elif ref != hyp:
                self.sub += 1
            else:
                self.correct += 1


def align_words(ref: Sequence[str], hyp: Sequence[str]) -> Alignment:
    """Return the pairs of a best alignment, :data:`NO_WORD` where there is no word."""
    import kaldialign

    return kaldialign.align(list(ref), list(hyp), NO_WORD)


def utterance_errors(recognitions: Sequence[Recognition]) -> list[ErrorCounts]:
    """Return the counts of each utterance."""
    counts = []
    for r in recognitions:
        counts.append(ErrorCounts())
        counts[-1].add(align_words(r.ref, r.hyp))
    return counts


def count_errors(recognitions: Sequence[Recognition]) -> ErrorCounts:
    """Return the counts of the whole set."""
    total = ErrorCounts()
    for r in recognitions:
        total.add(align_words(r.ref, r.hyp))
    return total


Errors = Union[Sequence[int], Sequence[Sequence[int]]]  # (n,) or (runs, n)


REPLICATIONS = 10_000


SEED = 20040517


BLOCK = 1 << 22  # drawn indices held at once


def _resample(columns: np.ndarray, replications: int, seed: int) -> np.ndarray:
    """Sum the rows of ``columns`` (n, k) over resampled utterances.

    Returns:
      (replications, k) float64.
    """
    rng = np.random.RandomState(seed)
    n = len(columns)
    sums = np.empty((replications, columns.shape[1]))
    rows = max(1, BLOCK // n)
    for begin in range(0, replications, rows):
        end = min(begin + rows, replications)
        drawn = rng.randint(n, size=(end - begin, n))
        sums[begin:end] = columns[drawn].sum(axis=1)
    return sums


def _stack(words: Sequence[int], *systems: np.ndarray) -> np.ndarray:
    """Stack per-utterance counts as (n, k) float64, the words last.

    Args:
      systems: errors of each, (runs, n).
    """
    rows = [run for runs in systems for run in runs] + [np.asarray(words, np.float64)]
    stacked = np.stack(rows, axis=1)
    if len(stacked) == 0 or stacked[:, -1].sum() == 0:
        raise ValueError("no reference words to resample")
    return stacked


def _runs(errors: Errors) -> np.ndarray:
    """Return errors as (runs, n) float64."""
    return np.atleast_2d(np.asarray(errors, dtype=np.float64))


def _mean_of_drawn(sums: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Return (replications,): for each the mean over as many runs, drawn anew.

    Args:
      sums: (replications, runs).
    """
    if sums.shape[1] == 1:
        return sums[:, 0]
    drawn = rng.randint(sums.shape[1], size=sums.shape)
    return np.take_along_axis(sums, drawn, axis=1).mean(axis=1)


def wer_interval(
    errors: Errors,
    words: Sequence[int],
    confidence: float = 0.95,
    replications: int = REPLICATIONS,
    seed: int = SEED,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the WER, in percent.

    Args:
      errors: (n,) word errors of each utterance, or (runs, n) of several runs, whose
        mean WER the interval is of.
      words: (n,) reference words of each utterance.
      confidence: the interval's coverage.
      replications, seed: of the resampling; the same seed gives the same interval.
    Returns:
      (low, high).
    Raises:
      ValueError: if there are no reference words.
    """
    sums = _resample(_stack(words, _runs(errors)), replications, seed)
    wrong = _mean_of_drawn(sums[:, :-1], np.random.RandomState(seed + 1))
    wer = 100 * wrong / np.maximum(sums[:, -1], 1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(wer, [tail, 100 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedDifference:
    """How two systems differ on the same utterances, WER in percent.

    Attributes:
      difference: WER of the new system minus that of the old; negative is better.
      interval: its 95 % bootstrap interval.
      probability: of improvement, the share of test sets on which the new system has
        fewer errors; 0.5 is no evidence either way.
    """

    difference: float
    interval: tuple[float, float]
    probability: float


def paired_difference(
    old_errors: Errors,
    new_errors: Errors,
    words: Sequence[int],
    replications: int = REPLICATIONS,
    seed: int = SEED,
) -> PairedDifference:
    """Compare two systems utterance by utterance, so that hard ones do not blur it.

    Args:
      old_errors, new_errors: (n,) word errors of each utterance, in the same order, or
        (runs, n) of several runs; the systems may have different numbers of runs.
      words: (n,) reference words of each utterance.
      replications, seed: of the resampling.
    Raises:
      ValueError: if the lengths differ or there are no reference words.
    """
    old, new = _runs(old_errors), _runs(new_errors)
    if not old.shape[1] == new.shape[1] == len(words):
        raise ValueError(
            f"paired systems need the same utterances, got {old.shape[1]} and "
            f"{new.shape[1]} with {len(words)} references"
        )
    sums = _resample(_stack(words, old, new), replications, seed)
    rng = np.random.RandomState(seed + 1)
    before = _mean_of_drawn(sums[:, : len(old)], rng)
    after = _mean_of_drawn(sums[:, len(old) : -1], rng)
    delta = 100 * (after - before) / np.maximum(sums[:, -1], 1)
    low, high = np.percentile(delta, [2.5, 97.5])
    # A tie counts half, so that a system against itself has probability 0.5.
    probability = np.mean(delta < 0) + 0.5 * np.mean(delta == 0)
    difference = 100 * (new.sum() / len(new) - old.sum() / len(old)) / np.sum(words)
    return PairedDifference(
        float(difference), (float(low), float(high)), float(probability)
    )


def errors_per_run(
    runs: Sequence[Sequence[Recognition]],
) -> tuple[list[list[int]], list[int]]:
    """Return the errors of several decodings of a set, utterance by utterance.

    Returns:
      (runs, n) errors and (n,) reference words, in the order of the sorted ids.
    Raises:
      ValueError: if they do not hold the same utterances and references.
    """
    by_id = [{r.cut_id: r for r in run} for run in runs]
    references = [{k: r.ref for k, r in run.items()} for run in by_id]
    if any(other != references[0] for other in references[1:]):
        raise ValueError(
            "not of the same utterances and references: decode both on one set"
        )
    ids = sorted(by_id[0])
    counts = [utterance_errors([run[i] for i in ids]) for run in by_id]
    return [[c.errors for c in run] for run in counts], [c.words for c in counts[0]]


def compare_systems(
    old: Sequence[Sequence[Recognition]], new: Sequence[Sequence[Recognition]]
) -> PairedDifference:
    """Compare two systems on a set, utterance by utterance.

    Args:
      old, new: the decodings of each system, one a run of its training.
    Raises:
      ValueError: if they do not hold the same utterances and references.
    """
    errors, words = errors_per_run([*old, *new])
    return paired_difference(errors[: len(old)], errors[len(old) :], words)
