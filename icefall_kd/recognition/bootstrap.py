"""How sure a word error rate is, by resampling utterances.

Source: Bisani and Ney, Bootstrap estimates for confidence intervals in ASR performance
evaluation, ICASSP 2004: a test set is a sample of utterances, so the spread over test
sets is imitated by drawing as many utterances with replacement, many times.

Where a system was trained several times, its runs are a sample too, of what the seed
may bring: as many of them are drawn with replacement, independently of the utterances.
Three runs are few, so the spread that they add is a lower bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

import numpy as np

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
