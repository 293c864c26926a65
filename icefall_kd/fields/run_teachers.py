"""Runs teachers over cuts in batches of like duration, and keeps their order.

A sample of a teacher's frames, to train a codec on or to take statistics from.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Optional

import numpy as np
import torch
from lhotse.cut import Cut

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.files import Pathlike
from icefall_kd.core.processes import ahead
from icefall_kd.data import cuts as audio
from icefall_kd.data.cuts import transcript
from icefall_kd.fields.format import cuts_path, recording_path, shard_ids
from icefall_kd.fields.join import read_keys
from icefall_kd.fields.shards import Shard
from icefall_kd.teachers.protocol import Teacher

_LOOKAHEAD = 4  # batches held in memory so that like durations can be put together

_Held = tuple[str, torch.Tensor, str]  # cut id, samples, transcript
Arrays = dict[str, np.ndarray]  # field -> (T, W) float32


def teach(
    cuts: Iterable[Cut], teachers: Sequence[Teacher], max_batch_duration: float
) -> Iterator[tuple[str, Arrays]]:
    """Yield (cut id, field -> (T, W) float32) in the order of the cuts.

    A few batches are read ahead, and cuts of like duration go to the teachers
    together.  The batches depend on the cuts alone, so a shard that is made again
    comes out the same.  A thread reads and decodes the audio of the next ones while
    the teachers hear these.

    Args:
      cuts: with their audio, 16 kHz mono, each starting at 0.
      teachers: all hear the same batches; their fields' names differ.
      max_batch_duration: seconds of padded audio in one call of a teacher.
    Raises:
      ValueError: if the audio is of another form; the message names the cut.
    """
    for held in ahead(_hold(cuts, _LOOKAHEAD * max_batch_duration)):
        yield from _teach_held(held, teachers, max_batch_duration)


def _hold(cuts: Iterable[Cut], limit: float) -> Iterator[list[_Held]]:
    """Yield the waves of successive cuts, about ``limit`` s of them at a time."""
    held: list[_Held] = []
    seconds = 0.0
    for cut in cuts:
        held.append((cut.id, load_wave(cut), transcript(cut)))
        seconds += cut.duration
        if seconds >= limit:
            yield held
            held, seconds = [], 0.0
    if held:
        yield held


def teach_batch(
    waves: Sequence[torch.Tensor],
    teachers: Sequence[Teacher],
    texts: Optional[Sequence[str]] = None,
) -> list[Arrays]:
    """Return what the teachers say about each utterance, all at once.

    Args:
      waves: each (S,) float32, 16 kHz.
      texts: their transcripts, for teachers that need them; "" or None where none is.
    """
    padded = torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True)
    lens = torch.tensor([len(w) for w in waves])
    results: list[Arrays] = [{} for _ in waves]
    for teacher in teachers:
        given = (list(texts or [""] * len(waves)),)
        given = given if getattr(teacher, "needs_text", False) else ()
        for field, output in teacher.forward(padded, lens, *given).items():
            for row, n in enumerate(output.lens.tolist()):
                results[row][field] = output.x[row, :n].cpu().numpy()
    return results


def _teach_held(
    held: list[_Held],
    teachers: Sequence[Teacher],
    max_batch_duration: float,
) -> Iterator[tuple[str, Arrays]]:
    order = sorted(range(len(held)), key=lambda i: (len(held[i][1]), held[i][0]))
    limit = max(1, int(max_batch_duration * SAMPLE_RATE))
    results: list[Optional[Arrays]] = [None] * len(held)
    batch: list[int] = []

    def run() -> None:
        _, waves, texts = zip(*(held[i] for i in batch))
        for i, said in zip(batch, teach_batch(waves, teachers, texts)):
            results[i] = said

    for i in order:
        # Sorted, so this one is the longest and sets the padded size of the batch.
        if batch and (len(batch) + 1) * len(held[i][1]) > limit:
            run()
            batch = []
        batch.append(i)
    if batch:
        run()
    for (cut_id, *_), result in zip(held, results):
        yield cut_id, result


def load_wave(cut: Cut) -> torch.Tensor:
    """Return a cut's samples (S,) float32, as teachers hear them.

    Raises:
      ValueError: if it is not 16 kHz mono, or not the whole of its recording; the
        message names the cut.
    """
    if abs(cut.start) > 1e-6:
        raise ValueError(
            f"cut '{cut.id}' starts at {cut.start} s inside its recording; write the "
            "Shar with lhotse's SharWriter, which stores each cut's own audio"
        )
    return audio.load_wave(cut)


_SHARDS = 50  # at most so many are opened, whatever the set's size


def sample_cuts(shar_dir: Pathlike, seconds: float, seed: int = 0) -> Iterator[Cut]:
    """Yield cuts drawn at random, with their audio, until there is enough of it.

    They come from at most 50 shards drawn at random; the same for the same seed.
    """
    rng = random.Random(seed)
    shards = shard_ids(shar_dir)
    rng.shuffle(shards)
    places = [
        (shard, n, key[3])
        for shard in shards[:_SHARDS]
        for n, key in enumerate(read_keys(cuts_path(shar_dir, shard)))
    ]
    rng.shuffle(places)
    wanted: dict[str, set[int]] = {}
    for shard, n, duration in places:
        if seconds <= 0:
            break
        wanted.setdefault(shard, set()).add(n)
        seconds -= duration
    for shard in sorted(wanted):
        tars = {"recording": recording_path(shar_dir, shard)}
        found = Shard(cuts_path(shar_dir, shard), tars).read(wanted=wanted[shard])
        yield from (cut for _, cut in found)


def sample_frames(
    shar_dir: Pathlike,
    teachers: Sequence[Teacher],
    num_frames: int,
    *,
    max_batch_duration: float = 60.0,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return about ``num_frames`` frames of each output, of cuts drawn at random.

    Whole cuts are taken, see :func:`sample_cuts`, until there is enough audio for the
    output with the fewest frames a second.

    Returns:
      field -> (F, W) float32; fewer than asked for where the set is small.
    """
    shift = max(o.frame_shift for t in teachers for o in t.outputs.values())
    cuts = sample_cuts(shar_dir, num_frames * shift, seed)
    said = [arrays for _, arrays in teach(cuts, teachers, max_batch_duration)]
    return {
        field: np.concatenate([arrays[field] for arrays in said])
        for teacher in teachers
        for field in teacher.outputs
    }
