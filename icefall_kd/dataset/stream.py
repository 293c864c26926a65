"""The cuts that a run reads: several Shar sets in one order, from any place in it.

The order depends on the seed and the epoch alone.  A place in it is a few numbers, and
going on from there opens the shards concerned and no others, however many there are.

Every process goes through the same cuts.  Their data are not read on the way, but where
a batch is made of them, so each process reads its own alone (from a URL, all).
"""

import functools
import heapq
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from lhotse.cut import Cut

from icefall_kd.core.files import Pathlike, as_path
from icefall_kd.fields.reader import Expectation, shar_shards
from icefall_kd.fields.shards import Shard, StoredCut

SAMPLED_SHARDS = 50  # of each set, to know its durations by
Key = tuple[int, int, int]  # set, shard of it, cut in the shard: where a cut lies


@dataclass(frozen=True)
class Source:
    """One Shar set of a stream.

    Attributes:
      name: of its folder.
      shards: in the order of their numbers.
      share: 0: an epoch has each cut once.  Above: the share of the epoch's cuts that
        come from this set, which begins again when it has ended.
    """

    name: str
    shards: tuple[Shard, ...]
    share: float = 0.0

    @property
    def size(self) -> int:
        """Bytes of its cuts' files, which grow with the number of cuts."""
        return max(1, sum(shard.cuts.stat().st_size for shard in self.shards))


class CutStream:
    """Cuts of several sets, mixed evenly.

    Sets without a share are read once an epoch and end together; the epoch ends with
    them.  Those with a share are drawn from as often as it says, in each epoch from
    another place on.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seed: int = 0,
        shuffle: bool = False,
        labelled: bool = False,
    ) -> None:
        """Describe the stream; nothing is read yet.

        Args:
          shuffle: read the shards of each set in an order of the epoch's own.
          labelled: leave out cuts without a supervision.
        Raises:
          ValueError: if there is no set to read once, or the shares are not between 0
            and 1 in sum.
        """
        shares = {s.name: s.share for s in sources if s.share}
        if len(shares) == len(sources):
            raise ValueError("no Shar set is given that an epoch reads once")
        if any(s < 0 for s in shares.values()) or sum(shares.values()) >= 1:
            raise ValueError(
                f"shares of mixed-in sets are {shares}; each must be above 0 and "
                "their sum below 1, since the rest is the share of data.train"
            )
        self.sources = tuple(sources)
        self.seed = seed
        self.shuffle = shuffle
        self.labelled = labelled
        self._sizes = [s.size for s in sources]

    def __iter__(self) -> Iterator[Cut]:
        """Yield the cuts of epoch 0."""
        return (cut.load() for _, cut in self.read(0))

    def read(
        self, epoch: int, place: Optional[Mapping[str, Any]] = None
    ) -> "StreamReader":
        """Begin an epoch, or go on in it from a ``place`` that a reader told."""
        return StreamReader(self, epoch, place)

    def fetch(self, keys: Sequence[Key]) -> list[Cut]:
        """Return single cuts with their data, in the order of ``keys``.

        Raises:
          ValueError: if a shard is damaged or lacks one of them.
        """
        return [cut.load() for cut in self.find(keys)]

    def find(self, keys: Sequence[Key]) -> list[StoredCut]:
        """Return single cuts without their data; else as :meth:`fetch`."""
        wanted: dict[tuple[int, int], dict[int, list[int]]] = {}
        for n, (source, shard, place) in enumerate(keys):
            places = wanted.setdefault((source, shard), {})
            places.setdefault(place, []).append(n)
        cuts: dict[int, StoredCut] = {}
        for (source, number), places in sorted(wanted.items()):
            shard = self.sources[source].shards[number]
            for place, cut in shard.find(wanted=places):
                cuts.update((n, cut) for n in places[place])
        if len(cuts) < len(keys):
            raise ValueError(
                f"{len(keys) - len(cuts)} cuts that waited for their batch are not in "
                "the Shar sets any more; go on from the last whole epoch instead: "
                "delete checkpoint-*.pt"
            )
        return [cuts[n] for n in range(len(keys))]

    def identity(self) -> list[list]:
        """Return what tells whether a saved place is one of these sets."""
        return [
            [source.name, len(source.shards), size, source.share]
            for source, size in zip(self.sources, self._sizes)
        ]

    def first(self, source: int, epoch: int) -> list[int]:
        """Return [turn, nth shard, cut] where a set begins in ``epoch``.

        A set with a share may never be read to its end: it begins anywhere.
        """
        if not self.shuffle or not self.sources[source].share:
            return [0, 0, 0]
        shard = self.sources[source].shards[self.order(source, epoch, 0)[0]]
        count = sum(1 for _ in shard.lines())
        rng = random.Random(f"{self.seed} {source} {epoch} first")
        return [0, 0, rng.randrange(max(1, count))]

    def order(self, source: int, epoch: int, turn: int) -> list[int]:
        """Return the numbers of a set's shards as the epoch reads them.

        Args:
          turn: how often the epoch has come to the end of this set.
        """
        numbers = list(range(len(self.sources[source].shards)))
        if self.shuffle:
            seed = f"{self.seed} {source} {epoch} {turn}"
            random.Random(seed).shuffle(numbers)
        return numbers

    @functools.cached_property
    def _sample(self) -> list[list[tuple[float, bool]]]:
        """(s, taken?) of the cuts of each set; of a large one, of its first shards."""
        return [
            [
                (line["duration"], self.takes(line))
                for shard in source.shards[:SAMPLED_SHARDS]
                for line in shard.lines()
            ]
            for source in self.sources
        ]

    @functools.cached_property
    def durations(self) -> list[list[float]]:
        """s of the cuts of each set; of a large one those of its first shards."""
        return [[s for s, taken in cuts if taken] for cuts in self._sample]

    def counts(self) -> tuple[int, int]:
        """Return how many cuts the stream takes, and of how many.

        Of large sets the first shards are counted.
        """
        return sum(map(len, self.durations)), sum(map(len, self._sample))

    def takes(self, line: Mapping[str, Any]) -> bool:
        """Return whether a cut, as plain JSON, is one of the stream's."""
        return not self.labelled or bool(line.get("supervisions"))

    def seconds(self) -> float:
        """Return the s of audio in an epoch; large sets are estimated."""
        once = sum(
            sum(durations) * max(1.0, len(source.shards) / SAMPLED_SHARDS)
            for source, durations in zip(self.sources, self.durations)
            if not source.share
        )
        return once / (1.0 - sum(source.share for source in self.sources))

    def longest(self, count: int, labelled: bool = False) -> list[tuple[float, Key]]:
        """Return (s, key) of the ``count`` longest cuts; every cuts' file is read.

        Args:
          labelled: only of cuts with a supervision, whatever the stream takes.
        """
        every = (
            (line["duration"], (s, n, place))
            for s, source in enumerate(self.sources)
            for n, shard in enumerate(source.shards)
            for place, line in enumerate(shard.lines())
            if self.takes(line) and (not labelled or line.get("supervisions"))
        )
        return heapq.nlargest(count, every)


class StreamReader:
    """Yields (key, cut without its data) of one epoch."""

    def __init__(
        self, stream: CutStream, epoch: int, place: Optional[Mapping[str, Any]]
    ) -> None:
        count = len(stream.sources)
        places = (
            place["sets"] if place else [stream.first(i, epoch) for i in range(count)]
        )
        self._taken = list(place["taken"]) if place else [0] * count
        self._stream = stream
        self._sets = [_SetReader(stream, i, epoch, places[i]) for i in range(count)]
        self._shares = [source.share for source in stream.sources]
        self._once = [i for i, share in enumerate(self._shares) if not share]

    def place(self) -> dict[str, Any]:
        """Return where the next cut will come from, in plain numbers."""
        return {"taken": list(self._taken), "sets": [s.place() for s in self._sets]}

    def __iter__(self) -> Iterator[tuple[Key, StoredCut]]:
        return self

    def __next__(self) -> tuple[Key, StoredCut]:
        while self._once:
            source = self._choose()
            item = next(self._sets[source], None)
            if item is not None:
                self._taken[source] += 1
                return item
            self._once.remove(source)
        raise StopIteration

    def _choose(self) -> int:
        """Return the set that lags furthest behind its share of what was taken."""
        sizes = self._stream._sizes
        source = min(self._once, key=lambda i: (self._taken[i] + 1) / sizes[i])
        mixed = [i for i, share in enumerate(self._shares) if share]
        if not mixed:
            return source
        taken = sum(self._taken) - sum(self._taken[i] for i in mixed)
        lags = {i: (self._taken[i] + 1) / self._shares[i] for i in mixed}
        lags[source] = (taken + 1) / (1.0 - sum(self._shares))
        return min(lags, key=lags.__getitem__)


class _SetReader:
    """Yields (key, cut without its data) of one set, shard after shard."""

    def __init__(
        self, stream: CutStream, source: int, epoch: int, place: Sequence[int]
    ) -> None:
        self._stream, self._source, self._epoch = stream, source, epoch
        self._turn, self._nth, self._cut = place
        self._cuts = self._read()

    def place(self) -> list[int]:
        """Return [turn, nth shard of its order, cut in the shard] of the next."""
        return [self._turn, self._nth, self._cut]

    def __next__(self) -> tuple[Key, StoredCut]:
        return next(self._cuts)

    def _read(self) -> Iterator[tuple[Key, StoredCut]]:
        source = self._stream.sources[self._source]
        while True:
            order = self._stream.order(self._source, self._epoch, self._turn)
            found = 0
            while self._nth < len(order):
                number = order[self._nth]
                shard = source.shards[number]
                for place, cut in shard.find(self._cut, labelled=self._stream.labelled):
                    self._cut, found = place + 1, found + 1
                    yield (self._source, number, place), cut
                self._nth, self._cut = self._nth + 1, 0
            if not source.share:
                return
            if not found and self._turn:
                raise ValueError(f"the mixed-in set '{source.name}' has no cuts")
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
      shar_dirs, fields, expect, missing: as ``icefall_kd.fields.reader.open_shar`` has
        them.
      seed, shuffle, labelled: as :class:`CutStream` has them.
      shares: name of a folder -> its share of the cuts; the others are read once.
    Raises:
      FileNotFoundError, ValueError: as ``open_shar`` and :class:`CutStream`.
    """
    shares = shares or {}
    sources = []
    for shar_dir in map(as_path, shar_dirs):
        shards = shar_shards(shar_dir, fields, expect, missing)
        sources.append(Source(shar_dir.name, shards, shares.get(shar_dir.name, 0)))
    return CutStream(sources, seed=seed, shuffle=shuffle, labelled=labelled)
