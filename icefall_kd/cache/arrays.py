"""Whether the arrays of a shard are right: decodable, finite, of their cuts' length."""

import math
import tarfile
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from icefall_kd.cache.codecs import Codec
from icefall_kd.cache.field import FieldInfo
from icefall_kd.cache.shards import REMEDY, Shard
from icefall_kd.cache.statistics import Sums

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
      keys: of the shard's cuts, see :func:`icefall_kd.cache.join.read_keys`.
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
