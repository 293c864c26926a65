"""A sample of a teacher's frames, to train a codec on or to take statistics from."""

import random
from collections.abc import Iterator, Sequence

import numpy as np
from lhotse.cut import Cut

from icefall_kd.cache.field import cuts_path, recording_path, shard_ids
from icefall_kd.cache.join import read_keys
from icefall_kd.cache.shards import Shard
from icefall_kd.cache.teach import teach
from icefall_kd.io import Pathlike
from icefall_kd.teachers.protocol import Teacher

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
