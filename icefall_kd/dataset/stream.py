"""Read the cuts of several Shar sets in one order, from any position in it.

The order depends on the seed and the epoch only.  A position is a few numbers, and a
resume opens only the shards at the position and those of waiting cuts.

Every process iterates over the same cuts.  It reads the data of a cut when it makes the
cut's batch, so it reads only the data of its batches.  From a URL it reads all data.
"""

import functools
import heapq
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from lhotse.cut import Cut

from icefall_kd.core.files import Pathlike, as_path
from icefall_kd.fields.reader import Expectation, open_shards
from icefall_kd.fields.shards import Shard, StoredCut

SAMPLED_SHARDS = 50  # number of shards of each set to estimate durations from
Key = tuple[int, int, int]  # indices: set, shard in the set, cut in the shard


@dataclass(frozen=True)
class Source:
    """A Shar set of a stream.

    Attributes:
      name: name of the folder.
      shards: shards in the order of their numbers.
      share: 0 reads each cut once an epoch.  Above 0, this share of the epoch's cuts
        comes from the set; after its last cut, the set starts again.
    """

    name: str
    shards: tuple[Shard, ...]
    share: float = 0.0

    @property
    def size(self) -> int:
        """Bytes of the manifests of cuts, about proportional to the number of cuts."""
        return max(1, sum(shard.cuts.stat().st_size for shard in self.shards))


class CutStream:
    """Cuts of several sets, mixed evenly.

    Sets without a share are read once an epoch and end together, which ends the epoch.
    Sets with a share are mixed in at that rate, in each epoch from another position.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seed: int = 0,
        shuffle: bool = False,
        labelled: bool = False,
    ) -> None:
        """Store the sets, without reading cuts.

        Args:
          sources: sets to read.
          seed: seed of the order.
          shuffle: shuffle the shards of each set, differently in each epoch.
          labelled: skip cuts without a supervision.
        Raises:
          ValueError: if all sets have a share, a share is negative, or the sum of the
            shares is not below 1.
        """
        shares = {s.name: s.share for s in sources if s.share}
        if len(shares) == len(sources):
            raise ValueError(
                "data.train: no Shar set without a share in data.mix. Name at least "
                "one set in data.train that is not in data.mix"
            )
        if any(s < 0 for s in shares.values()) or sum(shares.values()) >= 1:
            raise ValueError(
                f"data.mix: the shares are {shares}. Each must be above 0 and their "
                "sum below 1; the rest is the share of data.train"
            )
        self.sources = tuple(sources)
        self.seed = seed
        self.shuffle = shuffle
        self.labelled = labelled
        self.sizes = [s.size for s in sources]

    def __iter__(self) -> Iterator[Cut]:
        """Yield the cuts of epoch 0."""
        return (cut.load() for _, cut in self.read(0))

    def read(
        self, epoch: int, position: Optional[Mapping[str, Any]] = None
    ) -> "StreamReader":
        """Return a reader of an epoch, from its start or from ``position``.

        Args:
          position: value of :meth:`StreamReader.position`.
        """
        return StreamReader(self, epoch, position)

    def fetch(self, keys: Sequence[Key]) -> list[Cut]:
        """Return single cuts with their data, in the order of ``keys``.

        Raises:
          ValueError: if a shard is damaged, or has no such cut.
        """
        return [cut.load() for cut in self.find(keys)]

    def find(self, keys: Sequence[Key]) -> list[StoredCut]:
        """Return single cuts without their data; otherwise as :meth:`fetch`."""
        wanted: dict[tuple[int, int], dict[int, list[int]]] = {}
        for n, (source, shard, index) in enumerate(keys):
            indices = wanted.setdefault((source, shard), {})
            indices.setdefault(index, []).append(n)
        cuts: dict[int, StoredCut] = {}
        for (source, number), indices in sorted(wanted.items()):
            shard = self.sources[source].shards[number]
            for index, cut in shard.find(wanted=indices):
                cuts.update((n, cut) for n in indices[index])
        if len(cuts) < len(keys):
            raise ValueError(
                f"{len(keys) - len(cuts)} cuts of the checkpoint's sampler are missing "
                "in the Shar sets. Restore the sets, or delete checkpoint-*.pt to "
                "resume after the last complete epoch"
            )
        return [cuts[n] for n in range(len(keys))]

    def identity(self) -> list[list]:
        """Return name, number of shards, size and share of each set.

        A saved position is valid only for the same values.
        """
        return [
            [source.name, len(source.shards), size, source.share]
            for source, size in zip(self.sources, self.sizes)
        ]

    def first_position(self, source: int, epoch: int) -> list[int]:
        """Return [turn, nth shard, cut], the position where a set starts in ``epoch``.

        A set with a share starts at a random position when shuffled, since an epoch may
        end before the set does.
        """
        if not self.shuffle or not self.sources[source].share:
            return [0, 0, 0]
        shard = self.sources[source].shards[self.shard_order(source, epoch, 0)[0]]
        count = sum(1 for _ in shard.lines())
        rng = random.Random(f"{self.seed} {source} {epoch} first")
        return [0, 0, rng.randrange(max(1, count))]

    def shard_order(self, source: int, epoch: int, turn: int) -> list[int]:
        """Return the numbers of a set's shards in the order of reading.

        Args:
          turn: number of times that the epoch has read the complete set.
        """
        numbers = list(range(len(self.sources[source].shards)))
        if self.shuffle:
            seed = f"{self.seed} {source} {epoch} {turn}"
            random.Random(seed).shuffle(numbers)
        return numbers

    @functools.cached_property
    def _sampled(self) -> list[list[tuple[float, bool]]]:
        """(seconds, is accepted) of the cuts in the first 50 shards of each set."""
        return [
            [
                (line["duration"], self._accepts(line))
                for shard in source.shards[:SAMPLED_SHARDS]
                for line in shard.lines()
            ]
            for source in self.sources
        ]

    @functools.cached_property
    def durations(self) -> list[list[float]]:
        """Durations in seconds of the cuts of each set, in its first 50 shards."""
        return [[s for s, accepted in cuts if accepted] for cuts in self._sampled]

    def counts(self) -> tuple[int, int]:
        """Return the numbers of accepted and of all cuts in the first 50 shards."""
        return sum(map(len, self.durations)), sum(map(len, self._sampled))

    def _accepts(self, line: Mapping[str, Any]) -> bool:
        return not self.labelled or bool(line.get("supervisions"))

    def seconds(self) -> float:
        """Return the duration of an epoch in seconds, estimated for large sets."""
        once = sum(
            sum(durations) * max(1.0, len(source.shards) / SAMPLED_SHARDS)
            for source, durations in zip(self.sources, self.durations)
            if not source.share
        )
        return once / (1.0 - sum(source.share for source in self.sources))

    def longest(self, count: int, labelled: bool = False) -> list[tuple[float, Key]]:
        """Return (seconds, key) of the ``count`` longest cuts; reads all manifests.

        Args:
          labelled: skip cuts without a supervision, even if the stream accepts them.
        """
        candidates = (
            (line["duration"], (s, n, index))
            for s, source in enumerate(self.sources)
            for n, shard in enumerate(source.shards)
            for index, line in enumerate(shard.lines())
            if self._accepts(line) and (not labelled or line.get("supervisions"))
        )
        return heapq.nlargest(count, candidates)


class StreamReader:
    """Iterate over (key, cut without its data) of one epoch."""

    def __init__(
        self, stream: CutStream, epoch: int, position: Optional[Mapping[str, Any]]
    ) -> None:
        count = len(stream.sources)
        if position is None:
            starts = [stream.first_position(i, epoch) for i in range(count)]
            position = {"taken": [0] * count, "sets": starts}
        self._taken = list(position["taken"])
        self._sizes = stream.sizes
        self._sets = [
            _SetReader(stream, i, epoch, position["sets"][i]) for i in range(count)
        ]
        self._shares = [source.share for source in stream.sources]
        self._unfinished = [i for i, share in enumerate(self._shares) if not share]

    def position(self) -> dict[str, Any]:
        """Return the position of the next cut as plain numbers."""
        return {
            "taken": list(self._taken),
            "sets": [s.position() for s in self._sets],
        }

    def __iter__(self) -> Iterator[tuple[Key, StoredCut]]:
        return self

    def __next__(self) -> tuple[Key, StoredCut]:
        while self._unfinished:
            source = self._choose_set()
            item = next(self._sets[source], None)
            if item is not None:
                self._taken[source] += 1
                return item
            self._unfinished.remove(source)
        raise StopIteration

    def _choose_set(self) -> int:
        """Return the index of the set whose cuts are furthest below their share."""
        source = min(
            self._unfinished, key=lambda i: (self._taken[i] + 1) / self._sizes[i]
        )
        mixed = [i for i, share in enumerate(self._shares) if share]
        if not mixed:
            return source
        taken = sum(self._taken) - sum(self._taken[i] for i in mixed)
        progress = {i: (self._taken[i] + 1) / self._shares[i] for i in mixed}
        progress[source] = (taken + 1) / (1.0 - sum(self._shares))
        return min(progress, key=progress.__getitem__)


class _SetReader:
    """Iterate over (key, cut without its data) of one set."""

    def __init__(
        self, stream: CutStream, source: int, epoch: int, position: Sequence[int]
    ) -> None:
        self._stream, self._source, self._epoch = stream, source, epoch
        self._turn, self._nth, self._cut = position
        self._cuts = self._read()

    def position(self) -> list[int]:
        """Return [turn, nth shard in its order, cut in the shard] of the next cut."""
        return [self._turn, self._nth, self._cut]

    def __next__(self) -> tuple[Key, StoredCut]:
        return next(self._cuts)

    def _read(self) -> Iterator[tuple[Key, StoredCut]]:
        source, labelled = self._stream.sources[self._source], self._stream.labelled
        while True:
            order = self._stream.shard_order(self._source, self._epoch, self._turn)
            found = 0
            while self._nth < len(order):
                number = order[self._nth]
                shard = source.shards[number]
                for index, cut in shard.find(self._cut, labelled=labelled):
                    self._cut, found = index + 1, found + 1
                    yield (self._source, number, index), cut
                self._nth, self._cut = self._nth + 1, 0
            if not source.share:
                return
            if not found and self._turn:
                raise ValueError(
                    f"data.mix: set '{source.name}' has no cuts. Remove the set"
                )
            self._turn, self._nth = self._turn + 1, 0


def open_stream(
    shar_dirs: Sequence[Pathlike],
    fields: Sequence[str] = (),
    expect: Optional[Expectation] = None,
    *,
    shares: Optional[Mapping[str, float]] = None,
    seed: int = 0,
    shuffle: bool = False,
    missing: str = "error",
    labelled: bool = False,
) -> CutStream:
    """Return the cuts of Shar folders as one stream; see :class:`CutStream`.

    Args:
      shar_dirs, fields, expect, missing: see
        :func:`icefall_kd.fields.reader.open_shar`.
      shares: name of a folder -> its share of the cuts; an epoch reads each cut of the
        other sets once.
      seed, shuffle, labelled: see :class:`CutStream`.
    Raises:
      FileNotFoundError, ValueError: see ``open_shar`` and :class:`CutStream`.
    """
    shares = shares or {}
    sources = []
    for shar_dir in map(as_path, shar_dirs):
        shards = open_shards(shar_dir, fields, expect, missing)
        sources.append(Source(shar_dir.name, shards, shares.get(shar_dir.name, 0)))
    return CutStream(sources, seed=seed, shuffle=shuffle, labelled=labelled)
