"""Proves a field, down to every array: what is wrong, one line a fault.

The extraction and the reader look at sizes, checksums and keys, which tell whether a
file is the one that was written.  Here it is also asked whether what was written is
right: finite, of the cut's length, of the statistics that the description tells.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import numpy as np

from icefall_kd.core.files import Pathlike, sha256_file
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
from icefall_kd.fields.integrity import TarFaults, check_members, check_tar
from icefall_kd.fields.join import compare_keys, read_keys
from icefall_kd.fields.shards import Shard
from icefall_kd.fields.survey import FieldFiles, field_files, quick_look
from icefall_kd.fields.writer import (
    Sums,
    content_sha256,
    mean_and_mean_square,
    sums_of_state,
)

TOLERANCE = 1e-6  # of a sum, relative to the mean square: another machine's rounding
_EXTRACT = "run icefall_kd.bin.extract again"
_REDO = f"delete the shard (verify --delete-damaged), then {_EXTRACT}"
_REWRITE = f"delete it (verify --delete-damaged), then {_EXTRACT}: no shard is redone"

Progress = Callable[[int, int], None]  # (bytes looked at, bytes in all)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a field.

    Attributes:
      message: names the file, what is wrong with it and the remedy.
      damaged: files that are of no use to anybody: once they are deleted, the next
               extraction writes them again.
    """

    message: str
    damaged: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Looked:
    """What was found of one shard: its state and, if decoded and right, its sums."""

    state: Optional[ShardState]
    sums: Optional[Sums]
    faults: list[Fault]


def audit(
    shar_dir: Pathlike,
    field: str,
    *,
    decode: bool = True,
    progress: Optional[Progress] = None,
) -> Iterator[Fault]:
    """Yield every fault of a field; none when it is whole and right.

    Of an unfinished field the shards that are there are hashed and joined, not
    decoded.

    Args:
      decode: False looks at checksums, keys, the codec and the tars' members only.
    Raises:
      FileNotFoundError: if there is no such folder or field.
    """
    ids = shard_ids(shar_dir)
    files = field_files(shar_dir, field)
    info = None
    if files.info is not None:
        try:
            info = load_field_info(shar_dir, field)
        except ValueError as e:
            yield Fault(str(e), (files.info,))
    elif not files.described:
        yield Fault(f"{shar_dir}: '{field}' was not written by icefall_kd.bin.extract")
        return
    yield from _whole_field(shar_dir, files, info, ids)
    codec = None
    if info is not None:
        try:
            codec = load_codec(shar_dir, info)
        except (FileNotFoundError, ValueError) as e:
            yield Fault(str(e))
        codec = codec if decode else None
    sizes = {s: files.tars[s].stat().st_size for s in ids if s in files.tars}
    done, looked = 0, []
    for shard in sizes:
        found = _shard(shar_dir, files, shard, info, codec)
        yield from found.faults
        looked.append(found)
        done += sizes[shard]
        if progress is not None:
            progress(done, sum(sizes.values()))
    if info is not None and len(looked) == len(ids) == len(info.shards):
        yield from _description(files, info, looked, codec is not None)


def _whole_field(
    shar_dir: Pathlike, files: FieldFiles, info: Optional[FieldInfo], ids: list[str]
) -> Iterator[Fault]:
    """Yield what is missing of a field, and what it has too much."""
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
            f"{files.info}: describes a field '{info.name}'; give its files that name "
            f"again, or remove '{files.name}' with 'fields rm'"
        )
    problems = quick_look(files, info, ids)
    remedies = {
        "missing shards": f"copy them from where the field was made, or {_EXTRACT}",
        "shards without cuts": "copy the cuts too, or remove them",
    }
    for kind, remedy in remedies.items():
        if kind in problems:
            cases = problems[kind]
            text = f"{shar_dir}: field '{files.name}' has {len(cases)} {kind}"
            yield Fault(f"{text}: {', '.join(cases[:5])}; {remedy}")


def _shard(
    shar_dir: Pathlike,
    files: FieldFiles,
    shard: str,
    info: Optional[FieldInfo],
    codec: Optional[Codec],
) -> _Looked:
    """Look at one shard whose arrays are there."""
    tar, path = files.tars[shard], files.states.get(shard)
    damaged = tuple(p for p in (files.info, path, tar) if p is not None)

    def wrong(message: str) -> _Looked:
        return _Looked(state, None, [Fault(f"{message}; {_REDO}", damaged)])

    state = None
    if path is None:
        # Killed before this was written; or lost, if the field was whole once.
        name = f"{files.name}.{shard}.json"
        lost = wrong(f"{tar}: {name} is missing, which tells whose arrays it holds")
        return lost if info is not None else _Looked(None, None, [])
    try:
        state = load_shard_state(path)
    except ValueError as e:
        return _Looked(None, None, [Fault(str(e), damaged)])
    size = tar.stat().st_size
    if size != state.bytes:
        return wrong(f"{tar}: damaged, {size} bytes instead of {state.bytes}")
    if sha256_file(tar) != state.sha256:
        return wrong(f"{tar}: damaged, the SHA-256 is not the one of {path.name}")
    faults = _told_otherwise(files, info, state)
    try:
        keys = read_keys(cuts_path(shar_dir, shard))
    except (ValueError, OSError, EOFError, zlib.error) as e:
        remedy = "copy it again, or make the Shar again with icefall_kd.bin.make_shar"
        fault = Fault(f"{cuts_path(shar_dir, shard)}: damaged ({e}); {remedy}")
        return _Looked(state, None, [*faults, fault])
    faults += _not_joined(tar, compare_keys(keys, state.keys))
    if faults:
        return _Looked(state, None, faults)
    files_of_shard = Shard(cuts_path(shar_dir, shard), {files.name: tar})
    if codec is None or info is None:
        problems = check_members(files_of_shard)
        return _Looked(state, None, [wrong(f"{tar}: {p}").faults[0] for p in problems])
    found = check_tar(files_of_shard, keys, info, codec)
    problems = found.problems or _other_sums(state, found)
    faults = [wrong(f"{tar}: {p}").faults[0] for p in problems]
    return _Looked(state, None if faults else found.sums, faults)


def _told_otherwise(
    files: FieldFiles, info: Optional[FieldInfo], state: ShardState
) -> list[Fault]:
    """Return where the description tells of a shard what its state does not."""
    if info is None:
        return []
    entry = next((s for s in info.shards if s["name"] == state.tar), None)
    if entry is None:  # told as a missing shard
        return []
    other = [
        f"{key} is {entry.get(key)}, wanted {getattr(state, key)}"
        for key in ("sha256", "bytes", "num_cuts")
        if entry.get(key) != getattr(state, key)
    ]
    other += fingerprint_differences(state.fingerprint, info.fingerprint)
    if state.codec != info.codec:
        other.append(f"codec is {info.codec}, wanted {state.codec}")
    if not other:
        return []
    text = f"{files.info}: does not describe {state.tar}: {'; '.join(other)}"
    return [Fault(f"{text}; {_REWRITE}", (files.info,))]


def _not_joined(tar: Path, problems: dict[str, list[str]]) -> list[Fault]:
    return [
        Fault(
            f"{tar}: does not join its cuts, {len(cases)} {kind}: "
            f"{'; '.join(cases[:5])}; restore the cuts, or {_EXTRACT}"
        )
        for kind, cases in sorted(problems.items())
    ]


def _other_sums(state: ShardState, found: TarFaults) -> list[str]:
    """Return where a shard's state tells other statistics than its arrays have."""
    frames, total, squares = sums_of_state(state)
    num, arrays, array_squares = found.sums
    if frames != num:
        return [f"holds {num} frames, its state tells {frames}"]
    if total.shape != arrays.shape or squares.shape != arrays.shape:
        return [f"holds {len(arrays)} dimensions, its state tells {len(total)}"]
    # |sum| <= sqrt(frames * sum of squares), by Cauchy and Schwarz.
    reach = TOLERANCE * np.sqrt(num * array_squares)
    right = np.abs(total - arrays) <= reach  # False of NaN
    right &= np.abs(squares - array_squares) <= TOLERANCE * array_squares
    wrong = ~right
    if not wrong.any():
        return []
    return [
        f"has other statistics than its state tells, in {wrong.sum()} dimensions, for "
        f"example {np.flatnonzero(wrong)[:5].tolist()}"
    ]


def _description(
    files: FieldFiles, info: FieldInfo, looked: list[_Looked], decoded: bool
) -> Iterator[Fault]:
    """Yield where the description disagrees with the shards, all of them seen."""
    states = [x.state for x in looked if x.state is not None]
    if len(states) < len(looked):
        return
    told = {
        "content_sha256": content_sha256([s.sha256 for s in states]),
        "num_cuts": sum(s.num_cuts for s in states),
        "num_frames": sum(s.num_frames for s in states),
    }
    wrong = [
        f"{key} is {getattr(info, key)}, its shards give {value}"
        for key, value in told.items()
        if getattr(info, key) != value
    ]
    sums = [x.sums for x in looked] if decoded else [sums_of_state(s) for s in states]
    if all(s is not None for s in sums):
        wrong += _other_statistics(info, *mean_and_mean_square(sums))
    for what in wrong:
        yield Fault(f"{files.info}: {what}; {_REWRITE}", (files.info,))


def _other_statistics(
    info: FieldInfo, mean: np.ndarray, square: np.ndarray
) -> list[str]:
    told_mean, told_std = np.array(info.mean), np.array(info.std)
    if not told_mean.shape == told_std.shape == mean.shape == (info.dim,):
        return [f"mean and std are not of {info.dim} dimensions"]
    variance = np.maximum(square - mean**2, 0.0)
    wrong = {
        "mean": ~(np.abs(told_mean - mean) <= TOLERANCE * np.sqrt(square)),
        "std": ~(np.abs(told_std**2 - variance) <= TOLERANCE * square),
    }
    return [
        f"{name} is not that of its frames in {where.sum()} dimensions, for example "
        f"{np.flatnonzero(where)[:5].tolist()}"
        for name, where in wrong.items()
        if where.any()
    ]
