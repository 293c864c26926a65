"""Whether a shard of a field is whole."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Optional

from icefall_kd.cache.field import (
    ShardState,
    cuts_path,
    find_tar,
    load_shard_state,
    state_path,
)
from icefall_kd.cache.join import compare_keys, describe, read_keys
from icefall_kd.io import Pathlike, sha256_file

Place = tuple[str, str]  # field, shard


def verified_state(
    shar_dir: Pathlike,
    field: str,
    shard: str,
    keys: Optional[list[list]] = None,
    *,
    full: bool = True,
) -> Optional[ShardState]:
    """Return the state of a shard that is whole and belongs to its cuts, else None.

    Whole means: the state can be read, the arrays have its size and its SHA-256, and
    the keys join.  What is not whole is logged, unless it was never begun.

    Args:
      keys: of the cuts, where they have been read already.
      full: False leaves out the SHA-256, and with it a flipped bit.
    """
    path = state_path(shar_dir, field, shard)
    tar = find_tar(shar_dir, field, shard)
    if not path.is_file():
        return None
    try:
        state = load_shard_state(path)
    except ValueError as e:
        logging.warning("%s; the shard is made again", e)
        return None
    try:
        same = tar.stat().st_size == state.bytes
        same = same and (not full or sha256_file(tar) == state.sha256)
    except FileNotFoundError:
        if find_tar(shar_dir, field, shard) == tar:
            return None
        # Another process finished the field meanwhile, and moved its arrays.
        return verified_state(shar_dir, field, shard, keys, full=full)
    if not same:
        logging.warning("%s is damaged; the shard is made again", tar)
        return None
    cuts = cuts_path(shar_dir, shard)
    if sha256_file(cuts) == state.cuts_sha256:  # much faster than to read them
        return state
    problems = compare_keys(read_keys(cuts) if keys is None else keys, state.keys)
    if problems:
        logging.warning(
            "%s does not join its cuts; the shard is made again:\n%s",
            tar,
            describe(problems),
        )
        return None
    return state


def verified_fingerprints(
    shar_dir: Pathlike,
    places: Sequence[Place],
    *,
    full: bool = True,
    num_threads: int = 1,
    progress: Optional[Callable[[int], None]] = None,
) -> dict[Place, dict]:
    """Return the fingerprint of each shard that is whole, of many at once.

    Args:
      places: which are looked at.
      full:   as :func:`verified_state` has it.
      num_threads: that hash at the same time.
      progress: called with the bytes of each shard that was whole.
    """

    def look(place: Place) -> Optional[dict]:
        state = verified_state(shar_dir, *place, full=full)
        if state is not None and progress is not None:
            progress(state.bytes)
        return None if state is None else state.fingerprint

    with ThreadPoolExecutor(num_threads) as pool:
        found = zip(places, pool.map(look, places))
        return {place: known for place, known in found if known is not None}
