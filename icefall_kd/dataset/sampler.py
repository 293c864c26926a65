"""Draw batches of similar durations from a stream, with an exact and fast resume.

Cuts wait in buckets by duration.  Each draw takes a random batch from one bucket, and
the stream refills the buckets.  A draw depends on the seed, the epoch, the number of
the draw and the waiting cuts.  The state of the sampler is therefore the position of
each waiting cut, a few numbers, and a resume takes the same time for a set of any size.
(lhotse's samplers draw the epoch again up to the state.)

Every rank draws the batches of all ranks, which needs no audio, and reads the data of
its own batches only.
"""

import random
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch
from lhotse import CutSet

from icefall_kd.dataset.stream import CutStream, Key, StreamReader
from icefall_kd.fields.shards import StoredCut

Item = tuple[Key, StoredCut]


@dataclass(frozen=True)
class SamplerState:
    """State of a sampler: the waiting cuts, and the position in the stream.

    Attributes:
      epoch: epoch of the order of the cuts.
      draws: number of draws so far in this epoch.
      edges: durations between the buckets in seconds.
      buckets: waiting cuts of each bucket.
      position: position of the next cut, see :meth:`StreamReader.position`.
    """

    epoch: int
    draws: int
    edges: tuple[float, ...]
    buckets: tuple[tuple[Item, ...], ...]
    position: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain types, without the data of the cuts."""
        keys = [key for bucket in self.buckets for key, _ in bucket]
        return {
            "epoch": self.epoch,
            "draws": self.draws,
            "edges": list(self.edges),
            "sizes": [len(bucket) for bucket in self.buckets],
            "keys": torch.tensor(keys, dtype=torch.int32).reshape(-1, 3),
            "place": dict(self.position),
        }


class BucketSampler:
    """Iterate over the batches of one rank; a second iteration repeats the epoch.

    All ranks get the same number of batches, and no cut is in two batches.  An epoch
    may leave out its last cuts, at most ``world_size - 1``.

    Attributes:
      epoch: epoch of the order of the cuts.
      state: state after the last yielded batch.
    """

    def __init__(
        self,
        stream: CutStream,
        *,
        max_duration: float,
        edges: Optional[Sequence[float]] = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        buffer_size: int = 8000,
    ) -> None:
        """Store the options, without reading the stream.

        Args:
          stream: cuts to read.
          max_duration: maximum duration of a batch in seconds, padding included; a
            longer cut is a batch alone.
          edges: durations between the buckets in seconds, ascending; None for one
            bucket that keeps the order of the stream.
          seed: seed of the draws.
          rank, world_size: this process, and the number of processes.
          buffer_size: number of waiting cuts to draw batches from.
        Raises:
          ValueError: if ``rank`` is not below ``world_size``.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in 0..{world_size - 1}")
        self.stream = stream
        self.max_duration = max_duration
        self.edges = None if edges is None else tuple(edges)
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.buffer_size = buffer_size
        self.epoch = 0
        self.state: Optional[SamplerState] = None
        self._resume: Optional[Mapping[str, Any]] = None

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch of the next iteration."""
        self.epoch = epoch

    def state_dict(self, state: Optional[SamplerState] = None) -> dict[str, Any]:
        """Return ``state``, or the current one, as plain types and tensors."""
        state = state or self.state
        values = state.as_dict() if state else {"epoch": self.epoch}
        return {**values, "seed": self.seed, "sets": self.stream.identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume the next iteration after ``state``.

        ``max_duration`` and ``world_size`` may change; no cut is lost or repeated.

        Raises:
          ValueError: if the seed or the sets of the stream changed.
        """
        here = {"seed": self.seed, "sets": self.stream.identity()}
        there = {name: state.get(name) for name in here}
        if here != there or "keys" not in state:
            raise ValueError(
                "the training data is not that of the checkpoint, which was written "
                f"within an epoch: {there} there, {here} here. Restore the sets, "
                "data.mix and the seed, or delete checkpoint-*.pt to resume after the "
                "last complete epoch"
            )
        self.epoch = state["epoch"]
        self._resume = state

    def __iter__(self) -> Iterator[CutSet]:
        resume, self._resume = self._resume, None
        buckets = _Buckets(self, self.epoch, resume)
        while batches := buckets.draw_batches():
            self.state = buckets.state()
            yield CutSet.from_cuts(cut.load() for _, cut in batches[self.rank])


class _Buckets:
    """Waiting cuts of one epoch; draws the batches of all ranks from them."""

    def __init__(
        self, sampler: BucketSampler, epoch: int, resume: Optional[Mapping[str, Any]]
    ) -> None:
        self.sampler, self.epoch = sampler, epoch
        if resume is None:
            self.draws = 0
            self.edges = sampler.edges or ()
            self.reader: StreamReader = sampler.stream.read(epoch)
            self.buckets: list[list[Item]] = [[] for _ in range(len(self.edges) + 1)]
        else:
            self.draws = resume["draws"]
            self.edges = tuple(resume["edges"])
            self.reader = sampler.stream.read(epoch, resume["place"])
            keys = [tuple(key) for key in resume["keys"].tolist()]
            items = iter(list(zip(keys, sampler.stream.find(keys))))
            self.buckets = [
                [next(items) for _ in range(size)] for size in resume["sizes"]
            ]
        # Integer ms: a sum of floats would depend on the order, which a resume changes.
        self.durations = [sum(_ms(cut) for _, cut in b) for b in self.buckets]

    def state(self) -> SamplerState:
        """Return the state after the last draw."""
        buckets = tuple(tuple(bucket) for bucket in self.buckets)
        return SamplerState(
            self.epoch, self.draws, self.edges, buckets, self.reader.position()
        )

    def draw_batches(self) -> list[list[Item]]:
        """Return one batch for each rank; [] at the end of the epoch."""
        self._fill()
        size = self.sampler.world_size
        seed = f"{self.sampler.seed} {self.epoch} {self.draws}"
        rng = random.Random(seed) if self.sampler.edges is not None else None
        self.draws += 1
        batches: list[list[Item]] = []
        bucket = -1
        while len(batches) < size and any(self.buckets):
            if bucket < 0 or not self.buckets[bucket]:
                bucket = self._choose_bucket(rng)
            batches.append(self._draw_batch(bucket, rng))
        if sum(map(len, batches)) < size:
            return []
        while len(batches) < size:  # end of the epoch: divide the longest batches
            batches.sort(key=len)
            longest = batches.pop()
            batches += [longest[::2], longest[1::2]]
        return batches

    def _fill(self) -> None:
        """Read cuts from the stream until enough are waiting."""
        sampler = self.sampler
        waiting, held = sum(map(len, self.buckets)), sum(self.durations)
        # Without buckets, about two batches per rank are enough.
        enough = 2000 * sampler.max_duration * sampler.world_size
        while (
            waiting < sampler.buffer_size
            if sampler.edges is not None
            else held < enough
        ):
            item = next(self.reader, None)
            if item is None:
                return
            bucket = bisect_right(self.edges, item[1].duration)
            self.buckets[bucket].append(item)
            self.durations[bucket] += _ms(item[1])
            waiting, held = waiting + 1, held + _ms(item[1])

    def _choose_bucket(self, rng: Optional[random.Random]) -> int:
        """Return a bucket that has a full batch for each rank, else one with cuts."""
        if rng is None:
            return 0
        enough = 1000 * self.sampler.max_duration * self.sampler.world_size
        full = [b for b, held in enumerate(self.durations) if held >= enough]
        full = full or [b for b, bucket in enumerate(self.buckets) if bucket]
        return rng.choices(full, [self.durations[b] for b in full])[0]

    def _draw_batch(self, bucket: int, rng: Optional[random.Random]) -> list[Item]:
        """Remove and return a batch from a bucket that is not empty."""
        waiting, batch, longest = self.buckets[bucket], [], 0.0
        while waiting:
            n = rng.randrange(len(waiting)) if rng else 0
            cut = waiting[n][1]
            longest = max(longest, cut.duration)
            if batch and longest * (len(batch) + 1) > self.sampler.max_duration:
                break
            if rng:  # swap with the last cut, since popping that takes constant time
                waiting[n], waiting[-1] = waiting[-1], waiting[n]
                n = -1
            batch.append(waiting.pop(n))
            self.durations[bucket] -= _ms(cut)
        return batch


def _ms(cut: StoredCut) -> int:
    return round(1000 * cut.duration)


def bucket_edges(durations: Sequence[float], num_buckets: int) -> list[float]:
    """Return the edges of buckets that have equal sums of durations.

    Args:
      durations: durations of cuts in seconds.
    Returns:
      up to ``num_buckets - 1`` durations in seconds, ascending.

    >>> bucket_edges([1.0, 1.0, 1.0, 1.0, 2.0, 2.0], 2)
    [2.0]
    """
    ordered = np.sort(np.asarray(durations, dtype=np.float64))
    total = np.cumsum(ordered)
    targets = total[-1] * np.arange(1, num_buckets) / num_buckets
    return sorted(set(ordered[np.searchsorted(total, targets, side="right")].tolist()))
