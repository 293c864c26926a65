"""How many utterances of an epoch had no target.

From cuts to batches: sampling by duration, fbank, tokens, teachers' fields.
"""

import logging
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any, Callable, Optional, Union

import torch
from lhotse import CutSet
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from icefall_kd import LOG_EPS
from icefall_kd.core.processes import leave_signals_to_parent
from icefall_kd.data.cuts import load_wave, transcript
from icefall_kd.data.features import SpecAugment, batch_seed, compute_fbank
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.dataset.fields import (
    LiveFields,
    collate_field,
    decode_fields,
    prefetch_fields,
    without_fields,
)
from icefall_kd.dataset.sampler import BucketSampler, SamplerPlace, bucket_edges
from icefall_kd.dataset.stream import CutStream
from icefall_kd.fields.codecs import Codec


class MissingTargets:
    """Counts the utterances without a target in the batches of an epoch."""

    def __init__(self) -> None:
        self._missing: dict[str, int] = {}
        self._utterances = 0

    def add(self, batch: Mapping[str, Any]) -> None:
        """Count a batch."""
        self._utterances += len(batch["feature_lens"])
        for name, field in batch["fields"].items():
            missing = field["lens"].count(0)
            self._missing[name] = self._missing.get(name, 0) + missing

    def log(self, sampler: BucketSampler) -> None:
        """Tell the fields that lacked targets."""
        for name, missing in self._missing.items():
            if missing:
                logging.info(
                    "epoch %d, rank %d: %d of %d utterances had no target in field "
                    "'%s'",
                    sampler.epoch + 1,
                    sampler.rank,
                    missing,
                    self._utterances,
                    name,
                )


# Cuts behind a URL hold their data while they wait, 50 kB of audio for 2.5 s.
BUFFER_SIZE = 8000


class BatchDataset(Dataset):
    """Turns the cuts that a sampler chose into tensors.

    Attributes:
      epoch: of the masks of SpecAugment; :class:`Loader` keeps it at the sampler's.
    """

    def __init__(
        self,
        *,
        fields: Optional[Mapping[str, Codec]] = None,
        tokenizer: Optional[Tokenizer] = None,
        spec_augment: Optional[SpecAugment] = None,
        seed: int = 0,
        missing: str = "error",
        waves: bool = False,
    ) -> None:
        """Describe the batches; see :func:`make_loader`.

        Args:
          waves: let a batch carry its audio.
        """
        self.fields = dict(fields or {})
        self.tokenizer = tokenizer
        self.spec_augment = spec_augment
        self.seed = seed
        self.missing = missing
        self.waves = waves
        self.epoch = 0

    def __getitem__(self, cuts: CutSet) -> dict[str, Any]:
        """Return the batch of ``cuts``, longest first.

        Returns:
          features: (N, T, 80) float32, padded with ln(1e-10).
          feature_lens: (N,) int64, frames of 10 ms.
          text: N strings, "" for a cut without supervision.
          tokens: N lists of ids; only with a tokenizer.
          fields: name -> {"x": (N, T', D) float32, zero-padded, "lens": (N,) int64,
            0 for a cut without a target, "frame_shift": s}.
          cuts: the CutSet in the order of the batch.
          waves: (N, S) float32, zero-padded, and wave_lens: (N,) int64; only if asked.
        Raises:
          ValueError: if a cut lacks a field or its audio is damaged; the message
            names the cut.
        """
        return decode_fields(self.stored(cuts), self.fields)

    def stored(self, cuts: CutSet) -> dict[str, Any]:
        """Return the batch of ``cuts`` with its fields as they are stored."""
        cuts = longest_first(cuts)
        return self.join(self.hear(cuts), cuts, without_fields(cuts, self.fields))

    def hear(self, cuts: CutSet) -> dict[str, Any]:
        """Return what a worker makes of ordered cuts: all but their fields."""
        waves = [load_wave(cut) for cut in cuts]
        features = compute_fbank(waves)
        lens = torch.tensor([f.size(0) for f in features])
        x = pad_sequence(features, batch_first=True, padding_value=LOG_EPS)
        if self.spec_augment is not None:
            seed = batch_seed(self.seed, self.epoch, [cut.id for cut in cuts])
            x = self.spec_augment(x, lens, seed)
        text = [transcript(cut) for cut in cuts]
        batch: dict[str, Any] = {"features": x, "feature_lens": lens, "text": text}
        if self.tokenizer is not None:
            batch["tokens"] = [self.tokenizer.encode(t) for t in text]
        if self.waves:
            batch["waves"] = pad_sequence(waves, batch_first=True)
            batch["wave_lens"] = torch.tensor([len(wave) for wave in waves])
        return batch

    def join(
        self, heard: Mapping[str, Any], cuts: CutSet, bare: CutSet
    ) -> dict[str, Any]:
        """Return what :meth:`hear` said with the fields of the cuts.

        Args:
          bare: the cuts without fields.
        """
        fields = {n: collate_field(cuts, n, self.missing) for n in self.fields}
        return {**heard, "fields": fields, "cuts": bare.drop_in_memory_data()}


class _Hearing(Dataset):
    """The part of a :class:`BatchDataset` that a worker does."""

    def __init__(self, dataset: BatchDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, cuts: CutSet) -> dict[str, Any]:
        return self.dataset.hear(cuts)


def longest_first(cuts: CutSet) -> CutSet:
    """Return cuts in the order of a batch."""
    return cuts.sort_by_duration(ascending=False)


class Loader:
    """Iterates the batches of one epoch; iterating again repeats the epoch.

    ``loader.sampler.set_epoch(epoch)`` chooses the epoch: the order of the cuts and
    the masks of SpecAugment depend on it and on the seed alone, so an epoch can go on
    where ``state_dict()`` was taken, with ``load_state_dict()``.
    """

    def __init__(
        self,
        dataset: BatchDataset,
        sampler: BucketSampler,
        num_workers: int = 0,
        start_method: Optional[str] = None,
        finish: Optional[Callable[[Mapping[str, Any]], dict[str, Any]]] = None,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.num_workers = num_workers
        self.start_method = start_method
        self.finish = finish or partial(decode_fields, codecs=dataset.fields)
        self._place: Optional[SamplerPlace] = None

    def load(self, cuts: CutSet) -> dict[str, Any]:
        """Return the batch of some cuts, in this process."""
        return self.finish(self.dataset.stored(cuts))

    def state_dict(self) -> dict[str, Any]:
        """Return the place behind the batch that was yielded last.

        The sampler may be further, since workers load ahead.
        """
        return self.sampler.state_dict(self._place)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on from there; see :class:`BucketSampler`."""
        self.sampler.load_state_dict(state)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        self.dataset.epoch = self.sampler.epoch
        ahead = _Ahead(self.sampler, self.dataset.fields, self.num_workers > 0)
        loader = DataLoader(
            _Hearing(self.dataset),
            sampler=ahead,
            batch_size=None,
            num_workers=self.num_workers,
            multiprocessing_context=self.start_method if self.num_workers else None,
            worker_init_fn=leave_signals_to_parent,
        )
        missing = MissingTargets()
        for batch in loader:
            self._place, *cuts = ahead.batches.popleft()
            batch = self.dataset.join(batch, *cuts)
            missing.add(batch)
            yield self.finish(batch)
        self._place = self.sampler.place = None
        missing.log(self.sampler)


class _Ahead:
    """A sampler that remembers every batch still being loaded.

    Workers get the cuts without their fields: what has to cross to another process,
    and back, costs more than it does to read it here, and it is read ahead.

    Attributes:
      batches: the sampler's place behind each, its cuts with and without fields.
    """

    def __init__(
        self, sampler: BucketSampler, fields: Collection[str], prefetch: bool
    ) -> None:
        self.sampler, self.fields, self.prefetch = sampler, fields, prefetch
        self.batches: deque[tuple[SamplerPlace, CutSet, CutSet]] = deque()

    def __iter__(self) -> Iterator[CutSet]:
        for cuts in map(longest_first, self.sampler):
            if self.prefetch:
                prefetch_fields(cuts, self.fields)
            bare = without_fields(cuts, self.fields)
            self.batches.append((self.sampler.place, cuts, bare))
            yield bare


def make_loader(
    stream: CutStream,
    *,
    fields: Optional[Mapping[str, Codec]] = None,
    tokenizer: Optional[Tokenizer] = None,
    max_duration: float = 200.0,
    shuffle: bool = True,
    seed: int = 42,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    num_buckets: int = 10,
    spec_augment: Optional[SpecAugment] = None,
    buffer_size: int = BUFFER_SIZE,
    start_method: Optional[str] = None,
    missing: str = "error",
    live: Optional[LiveFields] = None,
    device: Union[str, torch.device] = "cpu",
) -> Loader:
    """Return the batches of ``stream``, the same for the same seed and epoch.

    All ranks get the same number of batches and no cut twice; up to one cut less
    than ranks are left out at the end of an epoch.

    Args:
      fields: teachers' fields that a batch carries, each with its codec.
      tokenizer: gives a batch its "tokens"; None for unlabelled cuts.
      max_duration: s of audio in a batch, padding included; a longer cut is a batch
        of its own.
      shuffle: batches of similar durations in a random order; else in order.
      num_workers: processes that load; 0 loads in this one, which is enough.
      num_buckets: groups of similar duration.
      buffer_size: cuts that wait in memory to be drawn from.
      start_method: of the workers, "fork" or "spawn"; None is the system's.
      missing: "error", or "skip" to let cuts lack targets, see ``open_shar``.
      live: gives a batch its fields in this process, in place of ``fields``.
      device: where ``fields`` are decoded, and stay.
    Raises:
      ValueError: if ``rank`` is not below ``world_size``.
    """
    edges = None
    if shuffle:
        edges = bucket_edges(sum(stream.durations, []), num_buckets)
    sampler = BucketSampler(
        stream,
        max_duration=max_duration,
        edges=edges,
        seed=seed,
        rank=rank,
        world_size=world_size,
        buffer_size=buffer_size,
    )
    sampler.set_epoch(epoch)
    dataset = BatchDataset(
        fields=fields,
        tokenizer=tokenizer,
        spec_augment=spec_augment,
        seed=seed,
        missing=missing,
        waves=live is not None,
    )
    finish = live or partial(decode_fields, codecs=dataset.fields, device=device)
    return Loader(dataset, sampler, num_workers, start_method, finish)
