"""Runs teachers over a Shar folder and writes their fields, shard by shard.

Killed at any time and started again, it redoes at most the shard that was being
written: a shard counts as done when its state exists and its checksum holds.
"""

import contextlib
import hashlib
import logging
import os
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from icefall_kd.cache.codec_file import (
    codec_path,
    codec_sha256,
    read_codec,
    read_origin,
    save_codec,
)
from icefall_kd.cache.codec_origin import (
    check_origin,
    check_training,
    is_trained_so,
    origin_of,
)
from icefall_kd.cache.codecs import (
    Codec,
    find_codec,
    make_codec,
    train_codec,
)
from icefall_kd.cache.field import (
    FieldInfo,
    ShardState,
    check_field_name,
    cuts_path,
    fingerprint_differences,
    info_path,
    recording_path,
    save,
    shard_ids,
)
from icefall_kd.cache.join import read_keys
from icefall_kd.cache.plan import check_disk, predict_bytes
from icefall_kd.cache.sample import sample_frames
from icefall_kd.cache.shards import Shard, ShardCuts
from icefall_kd.cache.teach import teach
from icefall_kd.cache.verify import verified_state
from icefall_kd.cache.writer import write_shard
from icefall_kd.io import Pathlike, as_path
from icefall_kd.teachers.protocol import Output, Teacher

VERSION = 1  # of the numbers written here; raise it when they change
CODEC_FRAMES = 20_000  # that a codec is trained on

Progress = Callable[[float, float], None]  # (s of audio done now, s to do in all)
Keys = Dict[str, List[list]]  # shard -> keys of its cuts


@dataclass
class Report:
    """What an extraction did.

    Attributes:
      shards_done, shards_kept: of all fields: written now; found whole.
      seconds: of audio that the teachers heard now.
    """

    shards_done: int = 0
    shards_kept: int = 0
    seconds: float = 0.0


@dataclass
class _Field:
    """A field being made: what it is, and its shards that are whole."""

    name: str
    output: Output
    codec: Codec
    fingerprint: Dict[str, Any]
    states: Dict[str, ShardState]


def extract(
    shar_dir: Pathlike,
    teachers: Sequence[Teacher],
    *,
    codec: str = "fp16",
    codec_dir: Optional[Pathlike] = None,
    codec_frames: int = CODEC_FRAMES,
    codec_options: Optional[Mapping[str, Any]] = None,
    max_batch_duration: float = 60.0,
    overwrite: bool = False,
    progress: Optional[Progress] = None,
) -> Tuple[Dict[str, FieldInfo], Report]:
    """Write the fields of the teachers, or what is left of them, in one pass.

    Args:
      shar_dir: holds cuts.*.jsonl.gz and recording.*.tar.
      teachers: see :class:`icefall_kd.teachers.Teacher`; all hear a shard together.
      codec:    of the embeddings, see :mod:`icefall_kd.cache.codecs`; kind "ctc" is
                always stored as "topk".
      codec_dir: another Shar folder whose trained codecs serve here too: the sets of
                one training must share theirs.
      codec_frames: frames that a codec is trained on where none is there yet.
      codec_options: of that training, see :class:`icefall_kd.cache.codecs.Codec`.
      max_batch_duration: seconds of padded audio in one call of a teacher.
      overwrite: replace fields of another fingerprint instead of refusing.
      progress: called as the audio goes by.
    Returns:
      the fields' descriptions by name, and what was done.
    Raises:
      ValueError: if a field exists with another fingerprint or codec, two teachers
        claim one field, or audio is not 16 kHz mono.
      OSError: if the disk is too full, before anything is written.
    """
    keys = {s: read_keys(cuts_path(shar_dir, s)) for s in shard_ids(shar_dir)}
    outputs = collect_outputs(teachers)
    report = Report()
    fields = []
    for name, output in outputs.items():
        spec = codec if output.kind == "embedding" else "topk"
        code = _obtain_codec(
            shar_dir,
            name,
            spec,
            codec_dir,
            codec_frames,
            dict(codec_options or {}),
            teachers,
            keys,
            overwrite,
        )
        field = _open_field(shar_dir, name, output, code, keys, overwrite)
        report.shards_kept += len(field.states)
        fields.append(field)
    _begin(shar_dir, fields, keys)
    todo = [s for s in keys if any(s not in f.states for f in fields)]
    seconds = sum(key[3] for s in todo for key in keys[s])

    def advance(key: list) -> None:
        report.seconds += key[3]
        if progress is not None:
            progress(report.seconds, seconds)

    for shard in todo:
        missing = [f for f in fields if shard not in f.states]
        _write(
            shar_dir, shard, keys[shard], missing, teachers, max_batch_duration, advance
        )
        report.shards_done += len(missing)
    infos = {f.name: _summarise(f, keys) for f in fields}
    for info in infos.values():
        save(info, info_path(shar_dir, info.name))
    return infos, report


def collect_outputs(teachers: Sequence[Teacher]) -> Dict[str, Output]:
    """Return all outputs of several teachers by field name.

    Raises:
      ValueError: if two of them claim one name, or a name cannot be a field's.
    """
    outputs: Dict[str, Output] = {}
    for teacher in teachers:
        for name, output in teacher.outputs.items():
            check_field_name(name)
            if name in outputs:
                raise ValueError(f"two teachers write the field '{name}'")
            outputs[name] = output
    return outputs


def _obtain_codec(
    shar_dir: Pathlike,
    field: str,
    spec: str,
    codec_dir: Optional[Pathlike],
    num_frames: int,
    options: Mapping[str, Any],
    teachers: Sequence[Teacher],
    keys: Keys,
    overwrite: bool,
) -> Codec:
    """Return the codec of a field: the one that is there, another set's, a new one."""
    if not find_codec(spec)[0].trained:
        return make_codec(spec)
    teacher = next(t for t in teachers if field in t.outputs)
    output = teacher.outputs[field]
    origin = origin_of(output, spec, num_frames, options)
    shared = codec_dir is not None and as_path(codec_dir) != as_path(shar_dir)
    home = codec_dir if shared else shar_dir
    there = codec_path(home, field).is_file()
    if shared or (there and not overwrite) or is_trained_so(home, field, spec, origin):
        check_origin(home, field, output)
        codec = read_codec(home, field)
    else:
        check_training(shar_dir, field, spec, output, keys, overwrite)
        frames = sample_frames(shar_dir, [teacher], num_frames)[field]
        logging.info("training codec %s of %s on %d frames", spec, field, len(frames))
        codec = train_codec(spec, frames, **options)
        save_codec(codec, shar_dir, field, origin)
    if codec.spec != spec:
        raise ValueError(
            f"{codec_path(home, field)} is of codec '{codec.spec}', not '{spec}'; "
            "give that --codec, another --field, or --overwrite"
        )
    if shared and (overwrite or not codec_path(shar_dir, field).is_file()):
        save_codec(codec, shar_dir, field, read_origin(home, field))
    return codec


def _open_field(
    shar_dir: Pathlike,
    name: str,
    output: Output,
    codec: Codec,
    keys: Keys,
    overwrite: bool,
) -> _Field:
    """Return the field with the shards that need not be made.

    Raises:
      ValueError: if there are shards of another teacher, or the codec cannot hold
        the output.
    """
    if output.kind not in codec.kinds:
        raise ValueError(f"codec '{codec.spec}' cannot hold kind '{output.kind}'")
    fingerprint = {**output.fingerprint, "codec": codec.spec, "extraction": VERSION}
    sha256 = codec_sha256(codec)
    if sha256 is not None:
        fingerprint["codec_sha256"] = sha256
    states = {}
    for shard, shard_keys in keys.items():
        state = verified_state(shar_dir, name, shard, shard_keys)
        if state is None:
            continue
        if state.fingerprint == fingerprint:
            states[shard] = state
        elif not overwrite:
            raise ValueError(
                f"{shar_dir}: field '{name}' was made with another fingerprint: "
                + "; ".join(fingerprint_differences(fingerprint, state.fingerprint))
                + ". Give another --field, or --overwrite to replace it"
            )
    return _Field(name, output, codec, fingerprint, states)


def _begin(shar_dir: Pathlike, fields: Sequence[_Field], keys: Keys) -> None:
    """Check the room for what is left to write, and sweep what was left behind."""
    predicted = {}
    for field in fields:
        todo = [k for s, k in keys.items() if s not in field.states]
        if todo:
            predicted[field.name] = predict_bytes(todo, field.output, field.codec)
    if predicted:
        check_disk(shar_dir, predicted)
    for name in predicted:
        info_path(shar_dir, name).unlink(missing_ok=True)  # absent = unfinished
        _remove_leftovers(shar_dir, name)


def _write(
    shar_dir: Pathlike,
    shard: str,
    keys: List[list],
    fields: Sequence[_Field],
    teachers: Sequence[Teacher],
    max_batch_duration: float,
    advance: Callable[[list], None],
) -> None:
    """Write one shard of ``fields``, hearing its audio once."""
    names = {f.name for f in fields}
    needed = [t for t in teachers if names & set(t.outputs)]
    with contextlib.ExitStack() as stack:
        writers = {
            f.name: stack.enter_context(
                write_shard(
                    shar_dir,
                    f.name,
                    shard,
                    keys,
                    frame_shift=f.output.frame_shift,
                    codec=f.codec,
                    fingerprint=f.fingerprint,
                )
            )
            for f in fields
        }
        said = teach(_cuts(shar_dir, shard), needed, max_batch_duration)
        for (cut_id, arrays), key in zip(said, keys):
            for name, writer in writers.items():
                writer.write(cut_id, arrays[name])
            advance(key)
    for field in fields:
        field.states[shard] = writers[field.name].state


def _cuts(shar_dir: Pathlike, shard: str) -> ShardCuts:
    recording = recording_path(shar_dir, shard)
    if not recording.is_file():
        raise FileNotFoundError(f"{recording} is missing: the Shar has no audio there")
    return ShardCuts([Shard(cuts_path(shar_dir, shard), {"recording": recording})])


def _summarise(field: _Field, keys: Mapping[str, Any]) -> FieldInfo:
    states = [field.states[s] for s in keys]
    frames = sum(s.num_frames for s in states)
    mean = sum(np.array(s.sum) for s in states) / frames
    square = sum(np.array(s.sum_squares) for s in states) / frames
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    return FieldInfo(
        name=field.name,
        kind=field.output.kind,
        dim=field.output.dim,
        frame_shift=field.output.frame_shift,
        codec=field.codec.spec,
        fingerprint=field.fingerprint,
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
        codec_sha256=codec_sha256(field.codec),
    )


def _remove_leftovers(shar_dir: Pathlike, field: str) -> None:
    """Delete the partial files of runs of this field that are no longer alive."""
    for path in as_path(shar_dir).glob(f".*.partial.{field}.*"):
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
