"""Runs teachers over a Shar folder and writes their fields, shard by shard.

Killed at any time and started again, it redoes at most the shard that was being
written: a shard counts as done when its state exists and its checksum holds.

Several processes share the work without talking: each makes the shards that are its
own, and whoever finds all of them whole at its end writes the field's description.
"""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

import torch

from icefall_kd.core.distributed import World
from icefall_kd.core.files import Pathlike
from icefall_kd.data.cuts import check_cuts
from icefall_kd.fields.builder import (
    Making,
    begin_field,
    clear,
    collect_outputs,
    finish_field,
    keep_whole,
    refuse_foreign,
)
from icefall_kd.fields.codec_choice import CODEC_FRAMES, obtain_codecs
from icefall_kd.fields.format import (
    FieldInfo,
    cuts_path,
    load_field_info,
    recording_path,
    shard_ids,
)
from icefall_kd.fields.integrity import verified_fingerprints
from icefall_kd.fields.join import read_keys
from icefall_kd.fields.planner import Volume, check_disk, predict_bytes, select_shards
from icefall_kd.fields.run_teachers import teach
from icefall_kd.fields.shards import Shard, ShardCuts
from icefall_kd.fields.writer import write_shard
from icefall_kd.teachers.protocol import Teacher

ALONE = World(0, 1, torch.device("cpu"))

Progress = Callable[[float, float], None]  # (s of audio done now, s to do in all)


@dataclass
class Report:
    """What an extraction did.

    Attributes:
      shards_done, shards_kept: of all fields: written now; found whole.
      seconds: of audio that the teachers heard now.
      missing: field -> shards that others have yet to make; absent when there are none.
    """

    shards_done: int = 0
    shards_kept: int = 0
    seconds: float = 0.0
    missing: dict[str, int] = field(default_factory=dict)


def extract(
    shar_dir: Pathlike,
    teachers: Sequence[Teacher],
    *,
    codec: str = "fp16",
    codec_dir: Optional[Pathlike] = None,
    codec_frames: int = CODEC_FRAMES,
    codec_options: Optional[Mapping[str, Any]] = None,
    max_batch_duration: float = 60.0,
    shards: Optional[str] = None,
    world: World = ALONE,
    verify: str = "full",
    num_threads: int = 1,
    overwrite: bool = False,
    progress: Optional[Progress] = None,
) -> tuple[dict[str, FieldInfo], Report]:
    """Write the fields of the teachers, or what is left of them, in one pass.

    Args:
      shar_dir: holds cuts.*.jsonl.gz and recording.*.tar.
      teachers: see :class:`icefall_kd.teachers.Teacher`; all hear a shard together.
      codec:    of the embeddings, see :mod:`icefall_kd.fields.codecs`; kind "ctc" is
                always stored as "topk".
      codec_dir: another Shar folder whose trained codecs serve here too: the sets of
                one training must share theirs.
      codec_frames: frames that a codec is trained on where none is there yet.
      codec_options: of that training, for example ``iterations`` of "mvq8".
      max_batch_duration: seconds of padded audio in one call of a teacher.
      shards:   those that this job makes, as
                :func:`icefall_kd.fields.planner.select_shards` reads it; None is all.
      world:    processes that share them: each takes every ``world.size``-th.
      verify:   "full" hashes what is there of the own shards; "size" does not, and
                does not find a flipped bit.
      num_threads: that hash at the same time.
      overwrite: replace fields of another fingerprint instead of refusing.
      progress: called as the audio goes by.
    Returns:
      the descriptions, by name, of the fields that are finished, and what was done.
    Raises:
      ValueError: if a field exists with another fingerprint or codec, two teachers
        claim one field, or cuts cannot be used, see
        :func:`icefall_kd.data.cuts.check_cuts`.
      FileNotFoundError: if audio is missing, or the codec for a job with ``shards``.
      OSError: if the disk is too full, before anything is written; or it becomes full.
    """
    every = shard_ids(shar_dir)
    own = select_shards(every, shards)[world.rank :: world.size]
    outputs = collect_outputs(teachers)
    check_cuts(
        (_shard(shar_dir, shard) for shard in own),
        str(shar_dir),
        labelled=any(getattr(t, "needs_text", False) for t in teachers),
    )
    if not overwrite:
        refuse_foreign(shar_dir, outputs)
    codecs = obtain_codecs(
        shar_dir,
        teachers,
        outputs,
        codec,
        world=world,
        codec_dir=codec_dir,
        num_frames=codec_frames,
        options=codec_options,
        may_train=shards is None,
        overwrite=overwrite,
    )
    fields = [begin_field(n, output, codecs[n]) for n, output in outputs.items()]
    _look(shar_dir, fields, own, verify, num_threads, overwrite)
    report = Report(shards_kept=sum(len(f.whole) for f in fields))
    todo = [s for s in own if any(s not in f.whole for f in fields)]
    volumes = {s: Volume.of_cuts(read_keys(cuts_path(shar_dir, s))) for s in todo}
    _begin(shar_dir, fields, volumes, world)
    seconds = sum(v.seconds for v in volumes.values())

    def advance(key: list) -> None:
        report.seconds += key[3]
        if progress is not None:
            progress(report.seconds, seconds)

    for shard in todo:
        missing = [f for f in fields if shard not in f.whole]
        _write(shar_dir, shard, missing, teachers, max_batch_duration, advance)
        report.shards_done += len(missing)
    return _finish(shar_dir, fields, every, report), report


def train_codecs(
    shar_dir: Pathlike,
    teachers: Sequence[Teacher],
    *,
    codec: str,
    codec_dir: Optional[Pathlike] = None,
    codec_frames: int = CODEC_FRAMES,
    codec_options: Optional[Mapping[str, Any]] = None,
    world: World = ALONE,
    overwrite: bool = False,
) -> None:
    """Only train the codecs that an extraction with these arguments would train.

    Raises:
      ValueError, FileNotFoundError: as :func:`extract`.
    """
    outputs = collect_outputs(teachers)
    if not overwrite:
        refuse_foreign(shar_dir, outputs)
    obtain_codecs(
        shar_dir,
        teachers,
        outputs,
        codec,
        world=world,
        codec_dir=codec_dir,
        num_frames=codec_frames,
        options=codec_options,
        overwrite=overwrite,
    )


def _look(
    shar_dir: Pathlike,
    fields: Sequence[Making],
    own: Sequence[str],
    verify: str,
    num_threads: int,
    overwrite: bool,
) -> None:
    """Find the shards that are whole, and say how fast they were hashed."""
    if verify not in ("full", "size"):
        raise ValueError(f"verify is '{verify}'; it can be full or size")
    places = [(f.name, shard) for f in fields for shard in own]
    sizes: list[int] = []
    start = time.perf_counter()
    found = verified_fingerprints(
        shar_dir,
        places,
        full=verify == "full",
        num_threads=num_threads,
        progress=sizes.append,
    )
    keep_whole(shar_dir, fields, found, overwrite)
    if found:
        megabytes, elapsed = sum(sizes) / 1e6, time.perf_counter() - start
        logging.info(
            "%s: %d shards of %.1f MB are whole (%s check, %.0f MB/s)",
            shar_dir,
            len(found),
            megabytes,
            verify,
            megabytes / elapsed,
        )


def _begin(
    shar_dir: Pathlike,
    fields: Sequence[Making],
    volumes: Mapping[str, Volume],
    world: World,
) -> None:
    """Check the room for what is left to write, and sweep what was left behind."""
    todo = {f.name: [s for s in volumes if s not in f.whole] for f in fields}
    # The others write to the same disk, each about as much.
    predicted = {
        f.name: world.size
        * predict_bytes(
            Volume.sum(volumes[s] for s in todo[f.name]),
            f.output,
            f.codec.bytes_per_frame(f.output.dim),
        )
        for f in fields
        if todo[f.name]
    }
    if predicted:
        check_disk(shar_dir, predicted)
    for making in fields:
        if todo[making.name]:
            clear(shar_dir, making, todo[making.name])


def _write(
    shar_dir: Pathlike,
    shard: str,
    fields: Sequence[Making],
    teachers: Sequence[Teacher],
    max_batch_duration: float,
    advance: Callable[[list], None],
) -> None:
    """Write one shard of ``fields``, hearing its audio once."""
    names = {f.name for f in fields}
    needed = [t for t in teachers if names & set(t.outputs)]
    keys = read_keys(cuts_path(shar_dir, shard))
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


def _cuts(shar_dir: Pathlike, shard: str) -> ShardCuts:
    recording = recording_path(shar_dir, shard)
    if not recording.is_file():
        raise FileNotFoundError(f"{recording} is missing: the Shar has no audio there")
    return ShardCuts([_shard(shar_dir, shard)])


def _shard(shar_dir: Pathlike, shard: str) -> Shard:
    recording = recording_path(shar_dir, shard)
    return Shard(cuts_path(shar_dir, shard), {"recording": recording})


def _finish(
    shar_dir: Pathlike, fields: Sequence[Making], every: list[str], report: Report
) -> dict[str, FieldInfo]:
    """Describe the fields that are whole; note what the others lack."""
    infos = {}
    for making in fields:
        missing = finish_field(shar_dir, making, every)
        if missing:
            report.missing[making.name] = missing
        else:
            infos[making.name] = load_field_info(shar_dir, making.name)
    return infos
