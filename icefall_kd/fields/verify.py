"""Verify every file and every array of a field, for ``bin.fields verify``.

:mod:`icefall_kd.fields.integrity` compares files with their recorded checksums.  This
module also decodes the arrays: they must be finite, have the length of their cuts, and
have the recorded statistics.
"""

import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from icefall_kd.core.files import Pathlike
from icefall_kd.core.frames import matches_duration
from icefall_kd.fields.codecs import Codec
from icefall_kd.fields.codecs.storage import load_codec
from icefall_kd.fields.format import (
    FieldInfo,
    ShardState,
    cuts_path,
    fingerprint_differences,
    load_field_info,
    load_shard_state,
    shard_ids,
)
from icefall_kd.fields.integrity import FieldFiles, check_tar, get_field_files
from icefall_kd.fields.join import compare_keys, read_keys
from icefall_kd.fields.shards import REMEDY, Shard
from icefall_kd.fields.writer import (
    Sums,
    content_sha256,
    mean_and_mean_square,
    sums_of_state,
)

# Of statistics, relative to the mean square; covers rounding on another machine.
TOLERANCE = 1e-6
_EXAMPLES = 5
_EXTRACT = "run icefall_kd.bin.extract again"
_REDO = f"delete the shard (verify --delete-damaged), then {_EXTRACT}"
_REWRITE = f"delete it (verify --delete-damaged), then {_EXTRACT}; shards are kept"

Progress = Callable[[int, int], None]  # (bytes verified, bytes in all)


@dataclass(frozen=True)
class Fault:
    """A fault of a field.

    Attributes:
      message: file, fault and remedy in one line.
      damaged: files to delete; the next extraction writes them again.
    """

    message: str
    damaged: tuple[Path, ...] = ()


def verify_field(
    shar_dir: Pathlike,
    field: str,
    *,
    decode: bool = True,
    progress: Optional[Progress] = None,
) -> Iterator[Fault]:
    """Yield every fault of a field; nothing if the field is complete and correct.

    The shards of an unfinished field are verified without decoding.

    Args:
      decode: decode all arrays; False verifies only checksums, keys, the codec and the
        members of tars.
      progress: function called after each shard.
    Raises:
      FileNotFoundError: if the folder or the field does not exist.
    """
    ids = shard_ids(shar_dir)
    files = get_field_files(shar_dir, field)
    info = None
    if files.info is not None:
        try:
            info = load_field_info(shar_dir, field)
        except ValueError as e:
            yield Fault(str(e), (files.info,))
    elif not files.is_ours:
        yield Fault(
            f"{shar_dir}: field '{field}' has no description: another program wrote "
            f"it, or {shar_dir}.fields was not copied"
        )
        return
    yield from _verify_files(shar_dir, files, info, ids)
    codec = None
    if info is not None:
        try:
            codec = load_codec(shar_dir, info)
        except (FileNotFoundError, ValueError) as e:
            yield Fault(str(e))
        codec = codec if decode else None
    sizes = {s: files.tars[s].stat().st_size for s in ids if s in files.tars}
    done, states = 0, []
    for shard in sizes:
        state, faults = _verify_shard(shar_dir, files, shard, info, codec)
        yield from faults
        if state is not None and not faults:
            states.append(state)
        done += sizes[shard]
        if progress is not None:
            progress(done, sum(sizes.values()))
    if info is not None and len(states) == len(ids) == len(info.shards):
        yield from _verify_totals(files, info, states)


def _verify_files(
    shar_dir: Pathlike, files: FieldFiles, info: Optional[FieldInfo], ids: list[str]
) -> Iterator[Fault]:
    """Yield missing files, and files without cuts."""
    if info is None:
        if files.info is None:
            done = sum(s in files.states and s in files.tars for s in ids)
            yield Fault(
                f"{shar_dir}: field '{files.name}' is unfinished, {done} of {len(ids)} "
                f"shards; {_EXTRACT}, or remove it with 'fields rm'"
            )
        return
    if info.name != files.name:
        yield Fault(
            f"{files.info}: describes field '{info.name}'; rename the files to that "
            f"name, or remove '{files.name}' with 'fields rm'"
        )
    problems = files.check_tars(info, ids)
    remedies = {
        "missing shards": f"copy them from the original folder, or {_EXTRACT}",
        "shards without cuts": "copy the cuts too, or remove them",
    }
    for kind, remedy in remedies.items():
        if kind in problems:
            cases = problems[kind]
            text = f"{shar_dir}: field '{files.name}' has {len(cases)} {kind}"
            yield Fault(f"{text}: {', '.join(cases[:_EXAMPLES])}; {remedy}")


def _verify_shard(
    shar_dir: Pathlike,
    files: FieldFiles,
    shard: str,
    info: Optional[FieldInfo],
    codec: Optional[Codec],
) -> tuple[Optional[ShardState], list[Fault]]:
    """Return the state of a shard, None if it cannot be read, and the faults."""
    tar, path = files.tars[shard], files.states.get(shard)
    damaged = tuple(p for p in (files.info, path, tar) if p is not None)

    def list_faults(*texts: str) -> list[Fault]:
        return [Fault(f"{tar}: {text}; {_REDO}", damaged) for text in texts]

    if path is None:
        if info is None:  # killed before the state was written
            return None, []
        name = f"{files.name}.{shard}.json"
        return None, list_faults(f"{name}, its state, is missing")
    try:
        state = load_shard_state(path)
    except ValueError as e:
        return None, [Fault(str(e), damaged)]
    fault = check_tar(tar, state.bytes, state.sha256)
    if fault:
        return state, list_faults(fault)
    faults = _compare_with_info(files, info, state) if info is not None else []
    cuts = cuts_path(shar_dir, shard)
    try:
        keys = read_keys(cuts)
    except (ValueError, OSError, EOFError, zlib.error) as e:
        return state, [*faults, Fault(f"{cuts}: damaged ({e}); {REMEDY}")]
    faults += [
        Fault(
            f"{tar}: does not join its cuts, {len(cases)} {kind}: "
            f"{'; '.join(cases[:_EXAMPLES])}; restore the cuts, or {_EXTRACT}"
        )
        for kind, cases in sorted(compare_keys(keys, state.keys).items())
    ]
    if faults:
        return state, faults
    opened = Shard(cuts, {files.name: tar})
    if codec is None or info is None:
        return state, list_faults(*_check_members(opened, len(keys)))
    problems, sums = _check_arrays(opened, keys, info, codec)
    return state, list_faults(*(problems or _compare_sums(state, sums)))


def _compare_with_info(
    files: FieldFiles, info: FieldInfo, state: ShardState
) -> list[Fault]:
    """Return the differences between a shard's state and the description."""
    entry = next((s for s in info.shards if s["name"] == state.tar), None)
    if entry is None:  # reported as a missing shard
        return []
    differences = [
        f"{key} is {entry.get(key)}, wanted {getattr(state, key)}"
        for key in ("sha256", "bytes", "num_cuts")
        if entry.get(key) != getattr(state, key)
    ]
    differences += fingerprint_differences(state.fingerprint, info.fingerprint)
    if state.codec != info.codec:
        differences.append(f"codec is {info.codec}, wanted {state.codec}")
    if not differences:
        return []
    text = f"{files.info}: does not describe {state.tar}: {'; '.join(differences)}"
    return [Fault(f"{text}; {_REWRITE}", (files.info,))]


def _check_members(shard: Shard, num_cuts: int) -> list[str]:
    """Return a problem if a shard's only tar does not have its cuts in order."""
    try:
        for _ in shard.read(wanted=()):
            pass
    except ValueError as e:
        return [_strip_message(shard, e)]
    return _count_members(shard, num_cuts)


def _check_arrays(
    shard: Shard, keys: list[list], info: FieldInfo, codec: Codec
) -> tuple[list[str], Sums]:
    """Decode every array of a shard's only tar.

    Args:
      keys: keys of the shard's cuts.
    Returns:
      one line for each kind of problem, and the sums over the correct arrays.
    """
    name = next(iter(shard.tars))
    wrong: dict[str, list[str]] = {}
    frames, total, squares = 0, np.zeros(info.dim), np.zeros(info.dim)
    try:
        for index, cut in shard.read():
            key = keys[index]
            x, problem = _decode_array(getattr(cut, name, None), key[3], info, codec)
            if problem is not None:
                kind, detail = problem
                wrong.setdefault(kind, []).append(f"{key[0]} ({detail})")
                continue
            x = x.astype(np.float64)
            frames += len(x)
            total += x.sum(axis=0)
            squares += np.square(x).sum(axis=0)
    except ValueError as e:
        return [_strip_message(shard, e)], (frames, total, squares)
    problems = [
        f"{len(cases)} arrays {kind}: {', '.join(cases[:_EXAMPLES])}"
        for kind, cases in sorted(wrong.items())
    ]
    return problems + _count_members(shard, len(keys)), (frames, total, squares)


def _decode_array(
    stored: Any, duration: float, info: FieldInfo, codec: Codec
) -> tuple[Optional[np.ndarray], Optional[tuple[str, str]]]:
    """Decode one array.

    Args:
      stored: lhotse's TemporalArray with its data, or None.
      duration: duration of the cut in seconds.
    Returns:
      (T, W) float32 and None; or None and (kind of problem, detail).
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
    if not matches_duration(len(x), info.frame_shift, duration):
        detail = f"{len(x)} frames, {duration / info.frame_shift:.1f} expected"
        return None, ("are not of their cut's length", detail)
    return x, None


def _count_members(shard: Shard, num_cuts: int) -> list[str]:
    """Return a problem if a shard's only tar does not have two members per cut."""
    tar = next(iter(shard.tars.values()))
    wanted = 2 * num_cuts  # data and description
    with tar.open("rb") as f:
        mode = "r:" if f.seekable() else "r|"  # some stores return only a stream
        with tarfile.open(fileobj=f, mode=mode) as opened:
            found = sum(1 for _ in opened)
    return [f"has {found} members instead of {wanted}"] if found != wanted else []


def _strip_message(shard: Shard, error: ValueError) -> str:
    """Return the message of an error of Shard, without file and remedy."""
    tar = next(iter(shard.tars.values()))
    return str(error).removeprefix(f"{tar}: ").removesuffix(f"; {REMEDY}")


def _compare_sums(state: ShardState, sums: Sums) -> list[str]:
    """Return the differences between the statistics of a state and of its arrays."""
    frames, total, squares = sums_of_state(state)
    num_frames, array_total, array_squares = sums
    if frames != num_frames:
        return [f"has {num_frames} frames, its state has {frames}"]
    if not total.shape == squares.shape == array_total.shape:
        return [f"has {len(array_total)} dimensions, its state has {len(total)}"]
    # Cauchy-Schwarz: |sum| <= sqrt(frames * sum of squares).
    tolerance = TOLERANCE * np.sqrt(num_frames * array_squares)
    correct = np.abs(total - array_total) <= tolerance  # False for NaN
    correct &= np.abs(squares - array_squares) <= TOLERANCE * array_squares
    if correct.all():
        return []
    return [f"has other statistics than its state, in {_list_dimensions(~correct)}"]


def _verify_totals(
    files: FieldFiles, info: FieldInfo, states: list[ShardState]
) -> Iterator[Fault]:
    """Yield the differences between the description and all shards."""
    totals = {
        "content_sha256": content_sha256([s.sha256 for s in states]),
        "num_cuts": sum(s.num_cuts for s in states),
        "num_frames": sum(s.num_frames for s in states),
    }
    differences = [
        f"{key} is {getattr(info, key)}, its shards have {value}"
        for key, value in totals.items()
        if getattr(info, key) != value
    ]
    differences += _compare_statistics(
        info, *mean_and_mean_square([sums_of_state(s) for s in states])
    )
    for difference in differences:
        yield Fault(f"{files.info}: {difference}; {_REWRITE}", (files.info,))


def _compare_statistics(
    info: FieldInfo, mean: np.ndarray, square: np.ndarray
) -> list[str]:
    """Return the differences between the description and the frames.

    Args:
      mean, square: mean and mean square of the frames, (D,) each.
    """
    info_mean, info_std = np.array(info.mean), np.array(info.std)
    if not info_mean.shape == info_std.shape == mean.shape == (info.dim,):
        return [f"mean and std do not have {info.dim} dimensions"]
    variance = np.maximum(square - mean**2, 0.0)
    wrong = {
        "mean": ~(np.abs(info_mean - mean) <= TOLERANCE * np.sqrt(square)),
        "std": ~(np.abs(info_std**2 - variance) <= TOLERANCE * square),
    }
    return [
        f"{name} differs from that of the frames in {_list_dimensions(where)}"
        for name, where in wrong.items()
        if where.any()
    ]


def _list_dimensions(where: np.ndarray) -> str:
    examples = np.flatnonzero(where)[:_EXAMPLES].tolist()
    return f"{where.sum()} dimensions, for example {examples}"
