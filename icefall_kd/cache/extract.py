"""Runs a teacher over a Shar folder and writes a field, shard by shard.

Killed at any time and started again, it redoes at most the shard that was being
written: a shard counts as done when its state exists and its checksum holds.
"""

import hashlib
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple, Union

import numpy as np

from icefall_kd.cache.codecs import get_codec
from icefall_kd.cache.field import (
    FieldInfo,
    ShardState,
    check_field_name,
    cuts_path,
    fingerprint_differences,
    info_path,
    load_shard_state,
    save,
    shard_ids,
    state_path,
    tar_path,
)
from icefall_kd.cache.join import compare_keys, describe, read_keys
from icefall_kd.cache.shards import Shard, ShardCuts
from icefall_kd.cache.teach import teach
from icefall_kd.cache.writer import write_shard
from icefall_kd.io import sha256_file
from icefall_kd.teachers.protocol import Teacher

VERSION = 1  # of the numbers written here; raise it when they change
_TAR_OVERHEAD = 2560  # bytes a cut: two tar headers, the array's header, its manifest

Pathlike = Union[str, Path]


@dataclass
class Report:
    """What an extraction did.

    Attributes:
      shards_done, shards_kept: written now; found whole.
      seconds: of audio in the shards written now.
    """

    shards_done: int = 0
    shards_kept: int = 0
    seconds: float = 0.0


def extract(
    shar_dir: Pathlike,
    teacher: Teacher,
    field: Optional[str] = None,
    *,
    codec: str = "fp16",
    max_batch_duration: float = 60.0,
    overwrite: bool = False,
    progress: Optional[Callable[[float, float], None]] = None,
) -> Tuple[FieldInfo, Report]:
    """Write the field ``field`` of a Shar folder, or what is left of it.

    Args:
      shar_dir: holds cuts.*.jsonl.gz and recording.*.tar.
      teacher:  see :class:`icefall_kd.teachers.Teacher`.
      field:    name of the field; the teacher's when None.
      codec:    key of :data:`icefall_kd.cache.codecs.CODECS`.
      max_batch_duration: seconds of padded audio in one call of the teacher.
      overwrite: replace a field of another fingerprint instead of refusing.
      progress: called with (seconds of audio done now, seconds to do in all).
    Returns:
      the field's description and what was done.
    Raises:
      ValueError: if the field exists with another fingerprint or codec, or audio is
        not 16 kHz mono.
      OSError: if the disk is too full, before anything is written.
    """
    field = field or teacher.name
    shar_dir = Path(shar_dir)
    check_field_name(field)
    get_codec(codec)
    fingerprint = {**teacher.fingerprint(), "codec": codec, "extraction": VERSION}
    keys = {s: read_keys(cuts_path(shar_dir, s)) for s in shard_ids(shar_dir)}
    states = _finished(shar_dir, field, keys, fingerprint, overwrite)
    todo = {s: k for s, k in keys.items() if s not in states}
    report = Report(shards_kept=len(states))
    if todo:
        info_path(shar_dir, field).unlink(missing_ok=True)  # absent = unfinished
        _remove_leftovers(shar_dir, field)
        check_disk(shar_dir, todo.values(), teacher, codec)
    seconds = sum(key[3] for k in todo.values() for key in k)
    for shard, shard_keys in todo.items():
        arrays = teach(_cuts(shar_dir, shard), teacher, max_batch_duration)
        states[shard] = write_shard(
            shar_dir,
            field,
            shard,
            shard_keys,
            _reported(arrays, shard_keys, report, seconds, progress),
            frame_shift=teacher.frame_shift,
            codec=codec,
            fingerprint=fingerprint,
        )
        report.shards_done += 1
    info = _summarise(field, teacher, codec, [states[s] for s in keys])
    save(info, info_path(shar_dir, field))
    return info, report


def predict_bytes(keys: Iterable[List[list]], teacher: Teacher, codec: str) -> int:
    """Return the bytes that the arrays of cuts will take; keys as in ``read_keys``."""
    per_frame = get_codec(codec).bytes_per_frame(teacher.dim)
    cuts = [key for shard in keys for key in shard]
    frames = sum(key[3] for key in cuts) / teacher.frame_shift
    return int(frames * per_frame + len(cuts) * _TAR_OVERHEAD)


def check_disk(
    shar_dir: Pathlike, keys: Iterable[List[list]], teacher: Teacher, codec: str
) -> None:
    """Refuse to start when the disk cannot hold 1.1 times the prediction.

    Raises:
      OSError: naming the bytes needed and free.
    """
    needed = int(1.1 * predict_bytes(keys, teacher, codec))
    free = shutil.disk_usage(shar_dir).free
    if free < needed:
        raise OSError(
            f"{shar_dir}: {needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are "
            "free; nothing was written. Make room, or put the Shar elsewhere"
        )


def verified_state(
    shar_dir: Pathlike, field: str, shard: str, keys: List[list]
) -> Optional[ShardState]:
    """Return the state of a shard that is whole and belongs to its cuts, else None.

    Whole means: the state can be read, the arrays have its size and its SHA-256, and
    the keys join.
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


def _finished(
    shar_dir: Path,
    field: str,
    keys: Dict[str, List[list]],
    fingerprint: Dict[str, Any],
    overwrite: bool,
) -> Dict[str, ShardState]:
    """Return the shards that need not be made; refuse those of another teacher."""
    states = {}
    for shard, shard_keys in keys.items():
        state = verified_state(shar_dir, field, shard, shard_keys)
        if state is None:
            continue
        if state.fingerprint == fingerprint:
            states[shard] = state
        elif not overwrite:
            raise ValueError(
                f"{shar_dir}: field '{field}' was made with another fingerprint: "
                + "; ".join(fingerprint_differences(fingerprint, state.fingerprint))
                + ". Give another --field, or --overwrite to replace it"
            )
    return states


def _cuts(shar_dir: Path, shard: str) -> ShardCuts:
    recording = Path(shar_dir) / f"recording.{shard}.tar"
    if not recording.is_file():
        raise FileNotFoundError(f"{recording} is missing: the Shar has no audio there")
    return ShardCuts([Shard(cuts_path(shar_dir, shard), {"recording": recording})])


def _reported(
    arrays: Iterable[Tuple[str, np.ndarray]],
    keys: List[list],
    report: Report,
    total: float,
    progress: Optional[Callable[[float, float], None]],
) -> Iterator[Tuple[str, np.ndarray]]:
    for (cut_id, x), key in zip(arrays, keys):
        yield cut_id, x
        report.seconds += key[3]
        if progress is not None:
            progress(report.seconds, total)


def _summarise(
    field: str, teacher: Teacher, codec: str, states: List[ShardState]
) -> FieldInfo:
    frames = sum(s.num_frames for s in states)
    mean = sum(np.array(s.sum) for s in states) / frames
    square = sum(np.array(s.sum_squares) for s in states) / frames
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    return FieldInfo(
        name=field,
        kind="embedding",
        dim=teacher.dim,
        frame_shift=teacher.frame_shift,
        codec=codec,
        fingerprint=states[0].fingerprint,
        mean=mean.tolist(),
        std=std.tolist(),
        num_cuts=sum(s.num_cuts for s in states),
        num_frames=frames,
        content_sha256=hashlib.sha256(
            "".join(s.sha256 for s in states).encode()
        ).hexdigest(),
        shards=[
            {
                "name": s.tar,
                "sha256": s.sha256,
                "num_cuts": s.num_cuts,
                "bytes": s.bytes,
                "cuts_sha256": s.cuts_sha256,
            }
            for s in states
        ],
    )


def _remove_leftovers(shar_dir: Path, field: str) -> None:
    """Delete the partial files of runs of this field that are no longer alive."""
    for path in Path(shar_dir).glob(f".*.partial.{field}.*"):
        pid = path.name.split(".")[1]
        if pid.isdigit() and not _alive(int(pid)):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, and another user's
        return True
    return True
