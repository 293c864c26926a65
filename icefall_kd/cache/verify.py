"""Whether a shard of a field is whole."""

import logging
from typing import List, Optional

from icefall_kd.cache.field import ShardState, load_shard_state, state_path, tar_path
from icefall_kd.cache.join import compare_keys, describe
from icefall_kd.io import Pathlike, sha256_file


def verified_state(
    shar_dir: Pathlike, field: str, shard: str, keys: List[list]
) -> Optional[ShardState]:
    """Return the state of a shard that is whole and belongs to its cuts, else None.

    Whole means: the state can be read, the arrays have its size and its SHA-256, and
    the keys join.  What is not whole is logged, unless it was never begun.
    """
    path = state_path(shar_dir, field, shard)
    tar = tar_path(shar_dir, field, shard)
    if not (path.is_file() and tar.is_file()):
        return None
    try:
        state = load_shard_state(path)
    except ValueError as e:
        logging.warning("%s; the shard is made again", e)
        return None
    if tar.stat().st_size != state.bytes or sha256_file(tar) != state.sha256:
        logging.warning("%s is damaged; the shard is made again", tar)
        return None
    problems = compare_keys(keys, state.keys)
    if problems:
        logging.warning(
            "%s does not join its cuts; the shard is made again:\n%s",
            tar,
            describe(problems),
        )
        return None
    return state
