"""Batches for training: features, texts, tokens and teachers' fields."""

import logging
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Optional, Union

import torch
from lhotse import CutSet
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from icefall_kd import LOG_EPS
from icefall_kd.core.processes import leave_signals_to_parent
from icefall_kd.data.cuts import get_transcript, load_wave
from icefall_kd.data.features import SpecAugment, batch_seed, compute_fbank
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.dataset.fields import (
    LiveTeachers,
    collate_field,
    decompress_fields,
    drop_fields,
    prefetch_fields,
)
from icefall_kd.dataset.sampler import BucketSampler, SamplerState, bucket_edges
from icefall_kd.dataset.stream import CutStream
from icefall_kd.fields.codecs import Codec

# Waiting cuts.  Those from a URL hold their data meanwhile, 20 kB per second of audio.
BUFFER_SIZE = 8000


class BatchDataset(Dataset):
    """Compute the features, texts and tokens of batches; runs in workers.

    Attributes:
      epoch: epoch of the masks of SpecAugment; :class:`Loader` sets it.
    """

    def __init__(
        self,
        *,
        tokenizer: Optional[Tokenizer] = None,
        spec_augment: Optional[SpecAugment] = None,
        seed: int = 0,
        needs_waves: bool = False,
    ) -> None:
        """Store the options.

        Args:
          tokenizer: encodes the texts; None omits "tokens".
          spec_augment: masks the features; None leaves them unchanged.
          seed: seed of the masks.
          needs_waves: add the audio to the batch, for live teachers.
        """
        self.tokenizer = tokenizer
        self.spec_augment = spec_augment
        self.seed = seed
        self.needs_waves = needs_waves
        self.epoch = 0

    def __getitem__(self, cuts: CutSet) -> dict[str, Any]:
        """Return the batch of ``cuts``, in their order.

        Returns:
          {
              "features":     (N, T, 80) float32 log-mel, padded with ln(1e-10),
              "feature_lens": (N,) int64, frames of 10 ms,
              "text":         list of N str, "" for a cut without supervision,
              "tokens":       list of N lists of int (only with a tokenizer),
              "waves":        (N, S) float32, zero-padded (only with ``needs_waves``),
              "wave_lens":    (N,) int64, samples (only with ``needs_waves``),
          }
        Raises:
          ValueError: if the audio of a cut is damaged; the message names the cut.
        """
        waves = [load_wave(cut) for cut in cuts]
        features = compute_fbank(waves)
        lens = torch.tensor([f.size(0) for f in features])
        x = pad_sequence(features, batch_first=True, padding_value=LOG_EPS)
        if self.spec_augment is not None:
            seed = batch_seed(self.seed, self.epoch, [cut.id for cut in cuts])
            x = self.spec_augment(x, lens, seed)
        text = [get_transcript(cut) for cut in cuts]
        batch: dict[str, Any] = {"features": x, "feature_lens": lens, "text": text}
        if self.tokenizer is not None:
            batch["tokens"] = [self.tokenizer.encode(t) for t in text]
        if self.needs_waves:
            batch["waves"] = pad_sequence(waves, batch_first=True)
            batch["wave_lens"] = torch.tensor([len(wave) for wave in waves])
        return batch


class Loader:
    """Iterate over the batches of one epoch; a second iteration repeats the epoch.

    ``loader.sampler.set_epoch(epoch)`` selects the epoch.  The order of the cuts and
    the masks of SpecAugment depend on the seed and the epoch only, so that an epoch
    resumes exactly from ``state_dict()``.

    All ranks get the same number of batches, and no cut is in two batches.  An epoch
    may leave out its last cuts, at most ``world_size - 1``.

    A batch is

        {
            "features", "feature_lens", "text", "tokens": see :class:`BatchDataset`,
            "fields": dict, name -> {
                "x":           (N, T', W) float32, zero-padded,
                "lens":        (N,) int64, valid frames; 0 for a cut without a target,
                "frame_shift": float, seconds,
            },
            "cuts":   CutSet in the order of the batch, longest first, without data,
        }

    N batch, T frames of 10 ms, T' frames of the teacher, W values of a frame.
    """

    def __init__(
        self,
        stream: CutStream,
        *,
        codecs: Optional[Mapping[str, Codec]] = None,
        tokenizer: Optional[Tokenizer] = None,
        max_duration: float = 200.0,
        shuffle: bool = True,
        seed: int = 42,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        num_buckets: int = 30,
        spec_augment: Optional[SpecAugment] = None,
        buffer_size: int = BUFFER_SIZE,
        start_method: Optional[str] = None,
        missing: str = "error",
        live: Optional[LiveTeachers] = None,
        device: Union[str, torch.device] = "cpu",
    ) -> None:
        """Store the options, and read durations from the stream for the buckets.

        Args:
          stream: cuts to read.
          codecs: name -> codec, for each stored field that a batch gets.
          tokenizer: encodes the texts; None for unlabelled cuts.
          max_duration: maximum duration of a batch in seconds, padding included; a
            longer cut is a batch alone.
          shuffle: draw batches of similar durations at random; False keeps the order.
          seed: seed of the order and of the masks.
          epoch: first epoch, from 0.
          rank, world_size: this process, and the number of processes.
          num_workers: number of processes that compute features; 0 uses this process.
          num_buckets: number of buckets of cuts with similar durations.
          spec_augment: masks the features; None leaves them unchanged.
          buffer_size: number of waiting cuts to draw batches from.
          start_method: start method of the workers, "fork" or "spawn"; None is the
            default of the system.
          missing: "error", or "skip" to allow cuts without a target.
          live: teachers that compute the fields in this process, instead of ``codecs``.
          device: device that decompresses stored fields and holds them.
        Raises:
          ValueError: if ``rank`` is not below ``world_size``.
        """
        self.sampler = BucketSampler(
            stream,
            max_duration=max_duration,
            edges=(
                bucket_edges(sum(stream.durations, []), num_buckets)
                if shuffle
                else None
            ),
            seed=seed,
            rank=rank,
            world_size=world_size,
            buffer_size=buffer_size,
        )
        self.sampler.set_epoch(epoch)
        self.dataset = BatchDataset(
            tokenizer=tokenizer,
            spec_augment=spec_augment,
            seed=seed,
            needs_waves=live is not None,
        )
        self.codecs = dict(codecs or {})
        self.live = live
        self.missing = missing
        self.device = device
        self.num_workers = num_workers
        self.start_method = start_method
        self._state: Optional[SamplerState] = None

    def load(self, cuts: CutSet) -> dict[str, Any]:
        """Return the batch of ``cuts``, longest first, without using workers."""
        cuts = cuts.sort_by_duration(ascending=False)
        bare = drop_fields(cuts, self.codecs)
        return self._add_fields(self.dataset[bare], cuts, bare, Counter())

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last yielded batch.

        The state of the sampler itself is later if workers prefetch batches.
        """
        return self.sampler.state_dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume the next iteration from ``state``; see :class:`BucketSampler`."""
        self.sampler.load_state_dict(state)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.dataset.epoch = self.sampler.epoch
        prefetching = _PrefetchSampler(self.sampler, self.codecs, self.num_workers > 0)
        batches = DataLoader(
            self.dataset,
            sampler=prefetching,
            batch_size=None,
            num_workers=self.num_workers,
            multiprocessing_context=self.start_method if self.num_workers else None,
            worker_init_fn=leave_signals_to_parent,
        )
        missing: Counter = Counter()
        total = 0
        for batch in batches:
            self._state, cuts, bare = prefetching.pending.popleft()
            total += len(batch["text"])
            yield self._add_fields(batch, cuts, bare, missing)
        for name, count in missing.items():
            if count:
                logging.info(
                    "epoch %d, rank %d: %d of %d utterances had no target in field "
                    "'%s'",
                    self.sampler.epoch + 1,
                    self.sampler.rank,
                    count,
                    total,
                    name,
                )

    def _add_fields(
        self, batch: Mapping[str, Any], cuts: CutSet, bare: CutSet, missing: Counter
    ) -> dict[str, Any]:
        """Return the batch with "fields" and "cuts" added.

        Args:
          bare: ``cuts`` without their fields.
          missing: field -> number of utterances without a target; updated in place.
        """
        batch = {**batch, "cuts": bare.drop_in_memory_data()}
        if self.live is not None:
            return self.live(batch)
        fields = {n: collate_field(cuts, n, self.missing) for n in self.codecs}
        for name, field in fields.items():
            missing[name] += field["lens"].count(0)
        return {**batch, "fields": decompress_fields(fields, self.codecs, self.device)}


class _PrefetchSampler:
    """Pass the cuts of each batch to workers, and keep them until the batch returns.

    Workers get cuts without fields.  This process reads the frames, since passing them
    between processes takes longer; the operating system prefetches them.

    Attributes:
      pending: (state of the sampler after the batch, cuts, cuts without fields) of each
        batch that workers are computing.
    """

    def __init__(
        self, sampler: BucketSampler, fields: Collection[str], prefetch: bool
    ) -> None:
        self.sampler, self.fields, self.prefetch = sampler, fields, prefetch
        self.pending: deque[tuple[SamplerState, CutSet, CutSet]] = deque()

    def __iter__(self) -> Iterator[CutSet]:
        for cuts in self.sampler:
            cuts = cuts.sort_by_duration(ascending=False)
            if self.prefetch:
                prefetch_fields(cuts, self.fields)
            bare = drop_fields(cuts, self.fields)
            self.pending.append((self.sampler.state, cuts, bare))
            yield bare


def load_batch(
    cuts: CutSet,
    codecs: Optional[Mapping[str, Codec]] = None,
    device: Union[str, torch.device] = "cpu",
    tokenizer: Optional[Tokenizer] = None,
) -> dict[str, Any]:
    """Return the batch of ``cuts``, longest first, without augmentation.

    Args:
      codecs: name -> codec, for each field that the batch gets.
      device: device that decompresses the fields and holds them.
      tokenizer: encodes the texts; None omits "tokens".
    Returns:
      batch, see :class:`Loader`.
    """
    cuts = cuts.sort_by_duration(ascending=False)
    codecs = codecs or {}
    bare = drop_fields(cuts, codecs)
    fields = {name: collate_field(cuts, name) for name in codecs}
    return {
        **BatchDataset(tokenizer=tokenizer)[bare],
        "fields": decompress_fields(fields, codecs, device),
        "cuts": bare.drop_in_memory_data(),
    }
