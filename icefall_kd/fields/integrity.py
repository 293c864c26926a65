"""Whether the arrays of a shard are right: decodable, finite, of their cuts' length.

Whether a shard of a field is whole.
"""

import logging
import math
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np

from icefall_kd.core.files import Pathlike, sha256_file
from icefall_kd.fields.codecs import Codec
from icefall_kd.fields.format import (
    FieldInfo,
    ShardState,
    cuts_path,
    find_tar,
    load_shard_state,
    state_path,
)
from icefall_kd.fields.join import compare_keys, describe, read_keys
from icefall_kd.fields.shards import REMEDY, Shard
from icefall_kd.fields.writer import Sums

SLACK = 1  # frames that a teacher's own edges may add or leave out
_EXAMPLES = 5


@dataclass(frozen=True)
class TarFaults:
    """What was found in a tar.

    Attributes:
      problems: one text a kind, with the number of arrays and examples.
      sums:     over the decoded arrays that are right.
    """

    problems: list[str]
    sums: Sums


def check_members(shard: Shard) -> list[str]:
    """Return why the members of a shard's one tar are not the cuts in order.

    The data are passed over.
    """
    try:
        for _ in shard.read(wanted=()):
            pass
    except ValueError as e:
        return [_bare(shard, e)]
    return _too_many(shard)


def check_tar(
    shard: Shard, keys: list[list], info: FieldInfo, codec: Codec
) -> TarFaults:
    """Decode every array of a shard's one tar.

    Args:
      keys: of the shard's cuts, see :func:`icefall_kd.fields.join.read_keys`.
      info: what the arrays must be.
    """
    name = next(iter(shard.tars))
    wrong: dict[str, list[str]] = {}
    frames, total, squares = 0, np.zeros(info.dim), np.zeros(info.dim)
    try:
        for place, cut in shard.read():
            key = keys[place]
            stored = getattr(cut, name, None)
            x, problem = check_array(stored, key[3], info, codec)
            if problem is not None:
                kind, detail = problem
                wrong.setdefault(kind, []).append(f"{key[0]} ({detail})")
                continue
            x = x.astype(np.float64)
            frames += len(x)
            total += x.sum(axis=0)
            squares += np.square(x).sum(axis=0)
    except ValueError as e:
        return TarFaults([_bare(shard, e)], (frames, total, squares))
    problems = [
        f"{len(cases)} arrays {kind}: {', '.join(cases[:_EXAMPLES])}"
        for kind, cases in sorted(wrong.items())
    ]
    return TarFaults(problems + _too_many(shard), (frames, total, squares))


def check_array(
    stored: Any, duration: float, info: FieldInfo, codec: Codec
) -> tuple[Optional[np.ndarray], Optional[tuple[str, str]]]:
    """Decode one array.

    Args:
      stored:   lhotse's TemporalArray with its data; None where there is none.
      duration: of the cut, s.
    Returns:
      (T, W) float32 and None; or None and (what is wrong, in which way).
    """
    if stored is None:
        return None, ("are missing", "no data")
    try:
        x = codec.decode(stored.load())
    except (ValueError, IndexError, TypeError, EOFError, OSError) as e:
        return None, ("cannot be decoded", str(e))
    if x.ndim != 2 or x.shape[1] != info.dim or stored.frame_shift != info.frame_shift:
        detail = f"{x.shape}, {stored.frame_shift} s a frame"
        return None, (f"are not of {info.dim} values, {info.frame_shift} s", detail)
    if not np.isfinite(x).all():
        count = int((~np.isfinite(x)).any(axis=1).sum())
        return None, ("are not finite", f"in {count} of {len(x)} frames")
    due = duration / info.frame_shift
    if not math.floor(due) - SLACK <= len(x) <= math.ceil(due) + SLACK:
        detail = f"{len(x)} frames, {due:.1f} due"
        return None, ("are not of their cut's length", detail)
    return x, None


def _too_many(shard: Shard) -> list[str]:
    """Return whether the tar goes on behind the last cut's members."""
    tar = next(iter(shard.tars.values()))
    wanted = 2 * sum(1 for _ in shard.lines())  # the data and their description
    with tar.open("rb") as f:
        mode = "r:" if f.seekable() else "r|"  # some stores give a file only in turn
        with tarfile.open(fileobj=f, mode=mode) as opened:
            found = sum(1 for _ in opened)
    return [f"holds {found} members, {wanted} are due"] if found != wanted else []


def _bare(shard: Shard, error: ValueError) -> str:
    """Return a reader's message without the file and the remedy, which are added."""
    tar = next(iter(shard.tars.values()))
    text = str(error)
    text = text[len(f"{tar}: ") :] if text.startswith(f"{tar}: ") else text
    return text[: -len(f"; {REMEDY}")] if text.endswith(REMEDY) else text


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
