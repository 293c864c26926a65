"""Statistics of a field's frames: pooled from its shards, and what stands out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icefall_kd.cache.field import FieldInfo, ShardState

OUTLIER = 10.0  # times the median dimension's root mean square

Sums = tuple[int, np.ndarray, np.ndarray]  # frames; sum and sum of squares, (D,)


@dataclass(frozen=True)
class Outstanding:
    """Dimensions of an embedding that stand out, the most extreme first.

    Attributes:
      largest_mean, largest_std, smallest_std: a few dimensions each.
      outliers: whose root mean square is above 10 times the median one.
      energy:   share of the mean squared norm that lies in the outliers.
    """

    largest_mean: list[int]
    largest_std: list[int]
    smallest_std: list[int]
    outliers: list[int]
    energy: float


def pool(sums: Sequence[Sums]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the mean square of each dimension over all frames."""
    frames = sum(n for n, _, _ in sums)
    total = np.sum([s for _, s, _ in sums], axis=0)
    squares = np.sum([q for _, _, q in sums], axis=0)
    return total / frames, squares / frames


def state_sums(state: ShardState) -> Sums:
    """Return the sums that a shard tells of itself."""
    return state.num_frames, np.array(state.sum), np.array(state.sum_squares)


def content_sha256(states: Sequence[ShardState]) -> str:
    """Return the checksum over those of all shards, in order."""
    return hashlib.sha256("".join(s.sha256 for s in states).encode()).hexdigest()


def outstanding(info: FieldInfo, count: int = 5) -> Outstanding:
    """Return which dimensions of an embedding stand out.

    Whisper and its like have a few that are a hundred times larger than the rest: a
    mean squared error hears little else.
    """
    mean, std = np.array(info.mean), np.array(info.std)
    square = mean**2 + std**2
    rms = np.sqrt(square)
    by_rms = np.argsort(-rms, kind="stable")
    outliers = [int(d) for d in by_rms if rms[d] > OUTLIER * np.median(rms)]
    by_mean = np.argsort(-np.abs(mean), kind="stable")
    by_std = np.argsort(-std, kind="stable")
    return Outstanding(
        largest_mean=by_mean[:count].tolist(),
        largest_std=by_std[:count].tolist(),
        smallest_std=by_std[::-1][:count].tolist(),
        outliers=outliers,
        energy=float(square[outliers].sum() / max(square.sum(), 1e-30)),
    )
