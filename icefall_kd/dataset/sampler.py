"""Batches of similar durations, drawn from a stream, in an order that can be kept.

A number of cuts wait in buckets by duration.  A batch is drawn at random from one of
them, and as many cuts as it took come in from the stream.  A draw depends on the seed,
the epoch, its number and what waits, so it is enough to keep *where* the waiting cuts
lie, a few numbers each.  Going on there costs the same however large the data are.
(lhotse's samplers draw the whole epoch again up to the place.)

All ranks draw the batches of all, which needs no audio, and read the data of their own.
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
class SamplerPlace:
    """Where a sampler stands: what waits in its buckets, and what it has read."""

    epoch: int
    draws: int
    edges: tuple[float, ...]
    buckets: tuple[tuple[Item, ...], ...]
    place: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """Return it as tensors and plain types, without the data of the cuts."""
        keys = [key for bucket in self.buckets for key, _ in bucket]
        return {
            "epoch": self.epoch,
            "draws": self.draws,
            "edges": list(self.edges),
            "sizes": [len(bucket) for bucket in self.buckets],
            "keys": torch.tensor(keys, dtype=torch.int32).reshape(-1, 3),
            "place": dict(self.place),
        }


class BucketSampler:
    """Yields the batches of one rank as CutSets; iterating again repeats the epoch.

    All ranks get equally many batches, and no cut goes to two of them: up to one cut
    less than ranks is left out at the end of an epoch.

    Attributes:
      epoch: of the order of the cuts.
      place: after the batch yielded last.
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
        """Describe the batches; nothing is read yet.

        Args:
          max_duration: s of audio in a batch, padding included; a longer cut is a
            batch of its own.
          edges: s between two buckets, rising; None: no buckets, and the order of the
            stream is kept.
          buffer_size: cuts that wait to be drawn.
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
        self.place: Optional[SamplerPlace] = None
        self._resume: Optional[Mapping[str, Any]] = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def state_dict(self, place: Optional[SamplerPlace] = None) -> dict[str, Any]:
        """Return ``place``, or where the sampler stands, as plain types and tensors."""
        place = place or self.place
        state = place.plain() if place else {"epoch": self.epoch}
        return {**state, "seed": self.seed, "sets": self.stream.identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on behind the place that ``state`` tells.

        ``max_duration`` and ``world_size`` may be others than then; no cut is lost or
        comes twice.

        Raises:
          ValueError: if the stream is another one; the message has the remedy.
        """
        here = {"seed": self.seed, "sets": self.stream.identity()}
        there = {name: state.get(name) for name in here}
        if here != there or "keys" not in state:
            raise ValueError(
                "the data is not that of the checkpoint, which was written within an "
                f"epoch: {there} then, {here} now. Bring back the sets, data.mix and "
                "the seed, or delete checkpoint-*.pt to go on from the last whole epoch"
            )
        self.epoch = state["epoch"]
        self._resume = state

    def __iter__(self) -> Iterator[CutSet]:
        state, self._resume = self._resume, None
        draws = _Draws(self, self.epoch, state)
        while True:
            batches = draws.next_batches()
            if not batches:
                return
            self.place = draws.place()
            yield CutSet.from_cuts(cut.load() for _, cut in batches[self.rank])


class _Draws:
    """One epoch of a sampler: all ranks' batches, draw after draw."""

    def __init__(
        self, sampler: BucketSampler, epoch: int, state: Optional[Mapping[str, Any]]
    ) -> None:
        self.sampler, self.epoch = sampler, epoch
        self.edges = sampler.edges or ()
        self.draws = 0
        if state is None:
            self.reader: StreamReader = sampler.stream.read(epoch)
            self.buckets: list[list[Item]] = [[] for _ in range(len(self.edges) + 1)]
        else:
            self._go_on(state)
        # Whole ms, since sums of floats would depend on when they began.
        self.held = [sum(_ms(cut) for _, cut in bucket) for bucket in self.buckets]

    def _go_on(self, state: Mapping[str, Any]) -> None:
        stream = self.sampler.stream
        self.edges = tuple(state["edges"])
        self.draws = state["draws"]
        keys = [tuple(key) for key in state["keys"].tolist()]
        items = iter(list(zip(keys, stream.find(keys))))
        self.buckets = [[next(items) for _ in range(size)] for size in state["sizes"]]
        self.reader = stream.read(self.epoch, state["place"])

    def place(self) -> SamplerPlace:
        """Return what is needed to go on from here."""
        buckets = tuple(tuple(bucket) for bucket in self.buckets)
        return SamplerPlace(
            self.epoch, self.draws, self.edges, buckets, self.reader.place()
        )

    def next_batches(self) -> list[list[Item]]:
        """Return one batch for each rank, [] at the end of the epoch."""
        self._fill()
        size = self.sampler.world_size
        seed = f"{self.sampler.seed} {self.epoch} {self.draws}"
        rng = random.Random(seed) if self.sampler.edges is not None else None
        self.draws += 1
        batches: list[list[Item]] = []
        bucket = -1
        while len(batches) < size and any(self.buckets):
            if bucket < 0 or not self.buckets[bucket]:
                bucket = self._choose(rng)
            batches.append(self._draw(bucket, rng))
        if sum(map(len, batches)) < size:
            return []
        while len(batches) < size:  # the end: what is there is shared out
            batches.sort(key=len)
            most = batches.pop()
            batches += [most[::2], most[1::2]]
        return batches

    def _fill(self) -> None:
        sampler = self.sampler
        waiting, held = sum(map(len, self.buckets)), sum(self.held)
        # In order, what the next batches can take is enough.
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
            self.held[bucket] += _ms(item[1])
            waiting, held = waiting + 1, held + _ms(item[1])

    def _choose(self, rng: Optional[random.Random]) -> int:
        """Return a bucket with a whole batch for each rank; with any if none has."""
        if rng is None:
            return 0
        enough = 1000 * self.sampler.max_duration * self.sampler.world_size
        able = [b for b, held in enumerate(self.held) if held >= enough]
        able = able or [b for b, bucket in enumerate(self.buckets) if bucket]
        return rng.choices(able, [self.held[b] for b in able])[0]

    def _draw(self, bucket: int, rng: Optional[random.Random]) -> list[Item]:
        """Take a batch from a bucket that is not empty."""
        waiting, batch, longest = self.buckets[bucket], [], 0.0
        while waiting:
            n = rng.randrange(len(waiting)) if rng else 0
            cut = waiting[n][1]
            longest = max(longest, cut.duration)
            if batch and longest * (len(batch) + 1) > self.sampler.max_duration:
                break
            if rng:  # the last one fills the gap
                waiting[n], waiting[-1] = waiting[-1], waiting[n]
                n = -1
            batch.append(waiting.pop(n))
            self.held[bucket] -= _ms(cut)
        return batch


def _ms(cut: StoredCut) -> int:
    return round(1000 * cut.duration)


def bucket_edges(durations: Sequence[float], num_buckets: int) -> list[float]:
    """Return the durations that divide the sum of all into ``num_buckets`` parts.

    >>> bucket_edges([1.0, 1.0, 1.0, 1.0, 2.0, 2.0], 2)
    [2.0]
    """
    ordered = np.sort(np.asarray(durations, dtype=np.float64))
    total = np.cumsum(ordered)
    goals = total[-1] * np.arange(1, num_buckets) / num_buckets
    return sorted(set(ordered[np.searchsorted(total, goals, side="right")].tolist()))
