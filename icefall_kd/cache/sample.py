"""A sample of a teacher's frames, to train a codec on or to take statistics from."""

import random
from typing import Dict, List, Sequence

import numpy as np

from icefall_kd.cache.field import cuts_path, recording_path, shard_ids
from icefall_kd.cache.join import read_keys
from icefall_kd.cache.shards import Shard
from icefall_kd.cache.teach import teach
from icefall_kd.io import Pathlike
from icefall_kd.teachers.protocol import Teacher

_SHARDS = 50  # at most so many are opened, whatever the set's size


def sample_frames(
    shar_dir: Pathlike,
    teachers: Sequence[Teacher],
    num_frames: int,
    *,
    max_batch_duration: float = 60.0,
    seed: int = 0,
) -> Dict[str, np.ndarray]:
    """Return about ``num_frames`` frames of each output, of cuts drawn at random.

    Whole cuts are taken, from at most 50 shards drawn at random, until there is
    enough audio for the output with the fewest frames a second; the same cuts for the
    same seed.

    Returns:
      field -> (F, W) float32; fewer than asked for where the set is small.
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
    shift = max(o.frame_shift for t in teachers for o in t.outputs.values())
    wanted: Dict[str, List[int]] = {}
    seconds = 0.0
    for shard, n, duration in places:
        if seconds >= num_frames * shift:
            break
        wanted.setdefault(shard, []).append(n)
        seconds += duration
    cuts = (
        cut
        for shard in sorted(wanted)
        for _, cut in Shard(
            cuts_path(shar_dir, shard), {"recording": recording_path(shar_dir, shard)}
        ).read(wanted=set(wanted[shard]))
    )
    said = [arrays for _, arrays in teach(cuts, teachers, max_batch_duration)]
    return {
        field: np.concatenate([arrays[field] for arrays in said])
        for teacher in teachers
        for field in teacher.outputs
    }
