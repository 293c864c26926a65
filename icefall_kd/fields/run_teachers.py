"""Run teachers over cuts in batches of similar duration, in the order of the cuts."""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from lhotse.cut import Cut

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.files import Pathlike
from icefall_kd.core.processes import prefetch
from icefall_kd.data.cuts import get_transcript, load_wave
from icefall_kd.fields.format import cuts_path, recording_path, shard_ids
from icefall_kd.fields.join import read_keys
from icefall_kd.fields.shards import Shard
from icefall_kd.teachers.base import Teacher, run_teacher

Arrays = dict[str, np.ndarray]  # field -> (T, W) float32

_BATCHES_IN_MEMORY = 4  # number of batches whose utterances are sorted by duration
_SAMPLE_SHARDS = 50  # maximum number of shards that a sample opens


class _Utterance(NamedTuple):
    cut_id: str
    wave: torch.Tensor
    text: str


def run_teachers(
    cuts: Iterable[Cut], teachers: Sequence[Teacher], max_batch_duration: float
) -> Iterator[tuple[str, Arrays]]:
    """Yield (cut id, field -> (T, W) float32) in the order of the cuts.

    The batches depend only on the cuts and their maximum duration, so an extraction is
    reproducible.  A thread decodes the audio of the next batches.

    Args:
      cuts: cuts with audio, 16 kHz mono; each starts at 0 s of its recording.
      teachers: all run on the same batches; the names of their fields must differ.
      max_batch_duration: maximum duration of a batch in seconds, padding included.
    Raises:
      ValueError: if the audio of a cut is not of this form, or a teacher's outputs
        contradict its description; the message names the cut.
    """
    limit = _BATCHES_IN_MEMORY * max_batch_duration
    for utterances in prefetch(_load_utterances(cuts, limit)):
        results: dict[int, Arrays] = {}
        for batch in _make_batches(utterances, max_batch_duration):
            ids, waves, texts = zip(*(utterances[i] for i in batch))
            arrays = run_teachers_on_batch(waves, teachers, texts, ids)
            results.update(zip(batch, arrays))
        for i, utterance in enumerate(utterances):
            yield utterance.cut_id, results[i]


def _load_utterances(cuts: Iterable[Cut], limit: float) -> Iterator[list[_Utterance]]:
    """Yield lists of successive utterances, each but the last of ``limit`` seconds."""
    loaded: list[_Utterance] = []
    seconds = 0.0
    for cut in cuts:
        loaded.append(_Utterance(cut.id, load_shar_wave(cut), get_transcript(cut)))
        seconds += cut.duration
        if seconds >= limit:
            yield loaded
            loaded, seconds = [], 0.0
    if loaded:
        yield loaded


def _make_batches(
    utterances: Sequence[_Utterance], max_batch_duration: float
) -> Iterator[list[int]]:
    """Yield batches, each as indices into ``utterances``, the shortest first."""
    limit = max(1, int(max_batch_duration * SAMPLE_RATE))
    batch: list[int] = []
    for i in sorted(
        range(len(utterances)),
        key=lambda i: (len(utterances[i].wave), utterances[i].cut_id),
    ):
        # The utterances are sorted, so the last one determines the padded length.
        if batch and (len(batch) + 1) * len(utterances[i].wave) > limit:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def run_teachers_on_batch(
    waves: Sequence[torch.Tensor],
    teachers: Sequence[Teacher],
    texts: Sequence[str] = (),
    cut_ids: Sequence[str] = (),
) -> list[Arrays]:
    """Return the outputs of the teachers for each utterance of a batch.

    Args:
      waves: samples of each utterance, (S,) float32, 16 kHz.
      texts: transcripts for teachers that need them; "" if an utterance has none.
      cut_ids: ids of the cuts for error messages.
    Raises:
      ValueError: if a teacher's outputs contradict its description.
    """
    padded = torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True)
    lens = torch.tensor([len(w) for w in waves])
    results: list[Arrays] = [{} for _ in waves]
    for teacher in teachers:
        outputs = run_teacher(teacher, padded, lens, texts, cut_ids)
        for field, output in outputs.items():
            for row, n in enumerate(output.lens.tolist()):
                results[row][field] = output.x[row, :n].cpu().numpy()
    return results


def load_shar_wave(cut: Cut) -> torch.Tensor:
    """Return the samples (S,) float32 of a cut of a Shar folder.

    Raises:
      ValueError: if the cut is not 16 kHz mono, or does not start at 0 s of its
        recording; the message names the cut.
    """
    if abs(cut.start) > 1e-6:
        raise ValueError(
            f"cut '{cut.id}' starts at {cut.start} s of its recording. Write the Shar "
            "with Lhotse's SharWriter, which stores the audio of each cut separately"
        )
    return load_wave(cut)


def audio_shard(shar_dir: Pathlike, shard: str) -> Shard:
    """Return the cuts and the audio of one shard."""
    return Shard(
        cuts_path(shar_dir, shard), {"recording": recording_path(shar_dir, shard)}
    )


def sample_cuts(shar_dir: Pathlike, seconds: float, seed: int = 0) -> Iterator[Cut]:
    """Yield about ``seconds`` of random cuts with audio, from at most 50 shards."""
    rng = random.Random(seed)
    shards = shard_ids(shar_dir)
    rng.shuffle(shards)
    candidates = [
        (shard, n, key[3])
        for shard in shards[:_SAMPLE_SHARDS]
        for n, key in enumerate(read_keys(cuts_path(shar_dir, shard)))
    ]
    rng.shuffle(candidates)
    drawn: dict[str, set[int]] = {}
    for shard, n, duration in candidates:
        if seconds <= 0:
            break
        drawn.setdefault(shard, set()).add(n)
        seconds -= duration
    for shard in sorted(drawn):
        for _, cut in audio_shard(shar_dir, shard).read(wanted=drawn[shard]):
            yield cut


def sample_frames(
    shar_dir: Pathlike,
    teachers: Sequence[Teacher],
    num_frames: int,
    *,
    max_batch_duration: float = 60.0,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return about ``num_frames`` frames of each output, from random cuts.

    The output with the lowest frame rate determines the amount of audio, so outputs at
    higher rates get more frames.  A small set gives fewer frames.

    Returns:
      field -> (F, W) float32.
    Raises:
      ValueError: if a value is not finite; the message names field and cut.
    """
    shift = max(o.frame_shift for t in teachers for o in t.outputs.values())
    cuts = sample_cuts(shar_dir, num_frames * shift, seed)
    results = []
    for cut_id, arrays in run_teachers(cuts, teachers, max_batch_duration):
        for field, x in arrays.items():
            if not np.isfinite(x).all():
                raise ValueError(
                    f"field '{field}': the teacher returned NaN or infinity for cut "
                    f"'{cut_id}' of {shar_dir}. Check its dtype and this cut's audio"
                )
        results.append(arrays)
    return {
        field: np.concatenate([arrays[field] for arrays in results])
        for teacher in teachers
        for field in teacher.outputs
    }
