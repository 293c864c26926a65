"""How sure a word error rate is, by resampling utterances.

Source: Bisani and Ney, Bootstrap estimates for confidence intervals in ASR performance
evaluation, ICASSP 2004: a test set is a sample of utterances, so the spread over test
sets is imitated by drawing as many utterances with replacement, many times.
"""

from dataclasses import dataclass
from typing import Sequence, Tuple

import numpy as np

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


def _check(*columns: Sequence[int]) -> np.ndarray:
    """Stack per-utterance counts as (n, k) float64 and see that words exist."""
    stacked = np.stack([np.asarray(c, dtype=np.float64) for c in columns], axis=1)
    if len(stacked) == 0 or stacked[:, -1].sum() == 0:
        raise ValueError("no reference words to resample")
    return stacked


def wer_interval(
    errors: Sequence[int],
    words: Sequence[int],
    confidence: float = 0.95,
    replications: int = REPLICATIONS,
    seed: int = SEED,
) -> Tuple[float, float]:
    """Return the percentile bootstrap interval of the WER, in percent.

    Args:
      errors: (n,) word errors of each utterance.
      words: (n,) reference words of each utterance.
      confidence: the interval's coverage.
      replications, seed: of the resampling; the same seed gives the same interval.
    Returns:
      (low, high).
    Raises:
      ValueError: if there are no reference words.
    """
    sums = _resample(_check(errors, words), replications, seed)
    wer = 100 * sums[:, 0] / np.maximum(sums[:, 1], 1)
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
    interval: Tuple[float, float]
    probability: float


def paired_difference(
    old_errors: Sequence[int],
    new_errors: Sequence[int],
    words: Sequence[int],
    replications: int = REPLICATIONS,
    seed: int = SEED,
) -> PairedDifference:
    """Compare two systems utterance by utterance, so that hard ones do not blur it.

    Args:
      old_errors, new_errors: (n,) word errors of each utterance, in the same order.
      words: (n,) reference words of each utterance.
      replications, seed: of the resampling.
    Raises:
      ValueError: if the lengths differ or there are no reference words.
    """
    if not len(old_errors) == len(new_errors) == len(words):
        raise ValueError(
            f"paired systems need the same utterances, got {len(old_errors)} and "
            f"{len(new_errors)} with {len(words)} references"
        )
    columns = _check(old_errors, new_errors, words)
    old, new, total = columns.sum(axis=0)
    sums = _resample(columns, replications, seed)
    delta = 100 * (sums[:, 1] - sums[:, 0]) / np.maximum(sums[:, 2], 1)
    low, high = np.percentile(delta, [2.5, 97.5])
    # A tie counts half, so that a system against itself has probability 0.5.
    probability = np.mean(delta < 0) + 0.5 * np.mean(delta == 0)
    return PairedDifference(
        float(100 * (new - old) / total), (float(low), float(high)), float(probability)
    )
