"""Word errors, bootstrap intervals of the WER, and comparison of two systems.

Source of the bootstrap: Bisani and Ney, Bootstrap estimates for confidence intervals in
ASR performance evaluation, ICASSP 2004.  A replication draws as many utterances as the
test set has, with replacement.

If a system was trained with several seeds, a replication also draws as many of its runs
with replacement.  With few runs, for example three, this underestimates the spread
between seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Union

import kaldialign
import numpy as np

NO_WORD = "*"  # in place of the missing word of an insertion or deletion
Alignment = list[tuple[str, str]]  # pairs of reference and hypothesis words
Errors = Union[Sequence[int], Sequence[Sequence[int]]]  # (n,) or (runs, n)

REPLICATIONS = 10_000
SEED = 20040517
BLOCK = 1 << 22  # maximum number of drawn indices in memory


@dataclass(frozen=True)
class Recognition:
    """Reference and hypothesis of one utterance, as words.

    Attributes:
      frames: encoder output frame (40 ms) of the last token of each word in ``hyp``;
        empty if unknown.
    """

    cut_id: str
    ref: list[str]
    hyp: list[str]
    frames: list[int] = field(default_factory=list, compare=False)


@dataclass
class ErrorCounts:
    """Numbers of word errors and of correct words."""

    ins: int = 0
    dels: int = 0
    sub: int = 0
    correct: int = 0

    @property
    def errors(self) -> int:
        return self.ins + self.dels + self.sub

    @property
    def words(self) -> int:
        """Number of reference words."""
        return self.correct + self.dels + self.sub

    @property
    def wer(self) -> float:
        """Word error rate in percent.

        Raises:
          ValueError: if there are no reference words.
        """
        if self.words == 0:
            raise ValueError("no transcripts: a WER needs reference words")
        return 100 * self.errors / self.words

    def add(self, alignment: Alignment) -> None:
        """Add the pairs of one utterance."""
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
    """Return the pairs of a Levenshtein alignment.

    :data:`NO_WORD` replaces the missing word of an insertion or deletion.
    """
    return kaldialign.align(list(ref), list(hyp), NO_WORD)


def utterance_errors(recognitions: Sequence[Recognition]) -> list[ErrorCounts]:
    """Return the error counts of each utterance."""
    counts = [ErrorCounts() for _ in recognitions]
    for count, r in zip(counts, recognitions):
        count.add(align_words(r.ref, r.hyp))
    return counts


def count_errors(recognitions: Sequence[Recognition]) -> ErrorCounts:
    """Return the error counts of all utterances together."""
    total = ErrorCounts()
    for r in recognitions:
        total.add(align_words(r.ref, r.hyp))
    return total


def errors_per_run(
    runs: Sequence[Sequence[Recognition]],
) -> tuple[list[list[int]], list[int]]:
    """Return the errors of each utterance in several decodings of one set.

    Args:
      runs: one decoding per run; each has all utterances, in any order.
    Returns:
      (runs, n) errors and (n,) reference words, sorted by utterance id.
    Raises:
      ValueError: if the utterances or references of the decodings differ.
    """
    by_id = [{r.cut_id: r for r in run} for run in runs]
    references = [{k: r.ref for k, r in run.items()} for run in by_id]
    for other in references[1:]:
        if other != references[0]:
            ids = {*references[0], *other}
            cut_id = min(k for k in ids if references[0].get(k) != other.get(k))
            raise ValueError(
                f"cut '{cut_id}': not the same reference in both decodings, which need "
                "the same utterances; decode both systems on one set"
            )
    ids = sorted(by_id[0])
    counts = [utterance_errors([run[i] for i in ids]) for run in by_id]
    return [[c.errors for c in run] for run in counts], [c.words for c in counts[0]]


def wer_interval(
    errors: Errors,
    words: Sequence[int],
    confidence: float = 0.95,
    replications: int = REPLICATIONS,
    seed: int = SEED,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval (low, high) of the WER in percent.

    Args:
      errors: (n,) word errors of each utterance, or (runs, n) for the interval of the
        mean WER of several runs.
      words: (n,) reference words of each utterance.
      confidence: coverage of the interval.
    Raises:
      ValueError: if there are no reference words.
    """
    sums = _resample(np.vstack([np.atleast_2d(errors), words]), replications, seed)
    wrong = _resample_runs(sums[:, :-1], np.random.RandomState(seed + 1))
    wer = 100 * wrong / np.maximum(sums[:, -1], 1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(wer, [tail, 100 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedDifference:
    """Difference of two systems on the same utterances, WER in percent.

    Attributes:
      difference: WER of the new system minus WER of the old one; negative is better.
      interval: 95 % bootstrap interval of the difference.
      probability: probability of improvement, the share of replications in which the
        new system has fewer errors, where a tie counts half; 0.5 means no evidence.
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
    """Compare two systems by resampling the same utterances for both.

    Args:
      old_errors: (n,) word errors of each utterance, or (runs, n) of several runs.
      new_errors: the same for the new system; its number of runs may differ.
      words: (n,) reference words of each utterance.
    Raises:
      ValueError: if the lengths differ or there are no reference words.
    """
    old, new = np.atleast_2d(old_errors), np.atleast_2d(new_errors)
    if not old.shape[1] == new.shape[1] == len(words):
        raise ValueError(
            f"paired systems need the same utterances, got {old.shape[1]} and "
            f"{new.shape[1]} with {len(words)} references"
        )
    sums = _resample(np.vstack([old, new, words]), replications, seed)
    rng = np.random.RandomState(seed + 1)
    before = _resample_runs(sums[:, : len(old)], rng)
    after = _resample_runs(sums[:, len(old) : -1], rng)
    delta = 100 * (after - before) / np.maximum(sums[:, -1], 1)
    low, high = np.percentile(delta, [2.5, 97.5])
    # A tie counts half: a system compared with itself has probability 0.5.
    probability = np.mean(delta < 0) + 0.5 * np.mean(delta == 0)
    difference = 100 * (new.sum() / len(new) - old.sum() / len(old)) / np.sum(words)
    return PairedDifference(
        float(difference), (float(low), float(high)), float(probability)
    )


def compare_systems(
    old: Sequence[Sequence[Recognition]], new: Sequence[Sequence[Recognition]]
) -> PairedDifference:
    """Compare two systems on a set.

    Args:
      old: decodings of the old system, one for each run of its training.
      new: decodings of the new system.
    Raises:
      ValueError: if the utterances or references of the decodings differ.
    """
    errors, words = errors_per_run([*old, *new])
    return paired_difference(errors[: len(old)], errors[len(old) :], words)


def _resample(counts: np.ndarray, replications: int, seed: int) -> np.ndarray:
    """Return sums over resampled utterances, (replications, k) float64.

    Args:
      counts: (k, n) counts of each utterance; the last row is the reference words.
    """
    columns = counts.T.astype(np.float64)
    n = len(columns)
    if n == 0 or columns[:, -1].sum() == 0:
        raise ValueError(
            "WER interval: no reference words; choose a set with transcripts"
        )
    rng = np.random.RandomState(seed)
    sums = np.empty((replications, columns.shape[1]))
    rows = max(1, BLOCK // n)
    for begin in range(0, replications, rows):
        end = min(begin + rows, replications)
        drawn = rng.randint(n, size=(end - begin, n))
        sums[begin:end] = columns[drawn].sum(axis=1)
    return sums


def _resample_runs(sums: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Return the mean (replications,) over runs that are drawn with replacement.

    Args:
      sums: (replications, runs) errors of each run in each replication.
    """
    if sums.shape[1] == 1:
        return sums[:, 0]
    drawn = rng.randint(sums.shape[1], size=sums.shape)
    return np.take_along_axis(sums, drawn, axis=1).mean(axis=1)
