"""Run teachers over a Shar folder and write their outputs as fields, shard by shard.

A shard is finished when its state exists and its checksum matches.  After a kill, the
same command repeats only the shard that was being written.

Several processes share the shards without communication.  The one that finishes last
finds all shards complete and writes the field's description.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import torch
from lhotse.cut import Cut

from icefall_kd.core.distributed import World
from icefall_kd.core.files import Pathlike
from icefall_kd.data.cuts import check_cuts
from icefall_kd.fields.builder import FieldBuilder, collect_outputs
from icefall_kd.fields.codecs import (
    Codec,
    codec_for_kind,
    find_codec,
    make_codec,
    train_codec,
)
from icefall_kd.fields.codecs.storage import (
    CODEC_FRAMES,
    codec_path,
    get_codecs,
    read_codec,
)
from icefall_kd.fields.format import (
    FieldInfo,
    cuts_path,
    info_path,
    load_field_info,
    recording_path,
    shard_ids,
)
from icefall_kd.fields.join import read_keys
from icefall_kd.fields.planner import (
    Speed,
    Volume,
    check_disk,
    predict_bytes,
    select_shards,
)
from icefall_kd.fields.run_teachers import (
    Arrays,
    audio_shard,
    run_teachers,
    sample_cuts,
)
from icefall_kd.fields.shards import ShardCuts
from icefall_kd.fields.writer import sum_frames, write_shard
from icefall_kd.teachers.base import Teacher

SINGLE_PROCESS = World(0, 1, torch.device("cpu"))

Progress = Callable[[float, float], None]  # (seconds of audio done, seconds in total)

_WARM_UP_CUTS = 4  # cuts processed before a measurement
_SLOW_TO_TRAIN = ("mvq",)  # codecs whose training takes minutes: not timed untrained


@dataclass
class ExtractionSummary:
    """Counts of one call of :func:`extract`.

    Attributes:
      shards_done: shards that were written, summed over the fields.
      shards_kept: finished shards that were skipped, summed over the fields.
      seconds: duration of the audio that the teachers processed.
      missing: field -> number of shards that other processes have not written yet;
        finished fields have no entry.
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
    world: World = SINGLE_PROCESS,
    verify: str = "full",
    num_threads: int = 1,
    overwrite: bool = False,
    progress: Optional[Progress] = None,
) -> tuple[dict[str, FieldInfo], ExtractionSummary]:
    """Write the fields of the teachers in one pass over the audio.

    Args:
      shar_dir: folder with cuts.*.jsonl.gz and recording.*.tar.
      teachers: see :class:`icefall_kd.teachers.Teacher`.
      codec: codec of the embeddings, for example "pq16", see
        :mod:`icefall_kd.fields.codecs`; "ctc" and "path" outputs always use "topk".
      codec_dir: another Shar folder to copy trained codecs from, since all sets of a
        training run must share a codec.
      codec_frames: number of frames to train a missing codec on.
      codec_options: options of this training, for example ``iterations`` for "mvq8".
      max_batch_duration: seconds of padded audio per batch.
      shards: selection for this job, see
        :func:`icefall_kd.fields.planner.select_shards`; None is all.
      world: processes that share the selection; each takes every ``world.size``-th
        shard.
      verify: check of existing shards: "full" compares size and SHA-256, "size" only
        the size, which misses flipped bits.
      num_threads: number of threads that compute these SHA-256.
      overwrite: replace fields of another fingerprint.
      progress: function called after each cut.
    Returns:
      field -> description, for the finished fields; and counts.
    Raises:
      ValueError: if a field exists with another fingerprint or codec, two teachers
        write the same field, or cuts are invalid, see
        :func:`icefall_kd.data.cuts.check_cuts`.
      FileNotFoundError: if audio is missing, or if ``shards`` is given and the codec
        must be trained first.
      OSError: if the disk is or becomes too full.
    """
    if verify not in ("full", "size"):
        raise ValueError(f"verify is '{verify}'. Available: full or size")
    all_shards = shard_ids(shar_dir)
    own = select_shards(all_shards, shards)[world.rank :: world.size]
    outputs = collect_outputs(teachers)
    check_cuts(
        (audio_shard(shar_dir, shard) for shard in own),
        str(shar_dir),
        labelled=any(t.needs_text for t in teachers),
    )
    codecs = get_codecs(
        shar_dir,
        teachers,
        codec,
        world=world,
        codec_dir=codec_dir,
        codec_frames=codec_frames,
        codec_options=codec_options,
        may_train=shards is None,
        overwrite=overwrite,
    )
    builders = [
        FieldBuilder(shar_dir, name, output, codecs[name])
        for name, output in outputs.items()
    ]
    for builder in builders:
        builder.skip_finished(own, verify == "full", num_threads, overwrite)
    summary = ExtractionSummary(shards_kept=sum(len(b.finished) for b in builders))
    todo = [s for s in own if any(s not in b.finished for b in builders)]
    volumes = {shard: Volume.of_shard(shar_dir, shard) for shard in todo}
    _prepare_disk(shar_dir, builders, volumes, world)
    total = sum(v.seconds for v in volumes.values())

    def add_cut(duration: float) -> None:
        summary.seconds += duration
        if progress is not None:
            progress(summary.seconds, total)

    for shard in todo:
        unfinished = [b for b in builders if shard not in b.finished]
        _write_fields(
            shar_dir, shard, unfinished, teachers, max_batch_duration, add_cut
        )
        summary.shards_done += len(unfinished)
    infos = {}
    for builder in builders:
        missing = builder.finish(all_shards)
        if missing:
            summary.missing[builder.name] = missing
        else:
            infos[builder.name] = load_field_info(shar_dir, builder.name)
    _log_fields(shar_dir, infos, summary)
    return infos, summary


def _prepare_disk(
    shar_dir: Pathlike,
    builders: Sequence[FieldBuilder],
    volumes: Mapping[str, Volume],
    world: World,
) -> None:
    """Check the disk space for the unfinished shards, and remove their stale files.

    Args:
      volumes: shard -> amount of audio, for the unfinished shards of this process.
    """
    predicted: dict[str, int] = {}
    for builder in builders:
        todo = [v for shard, v in volumes.items() if shard not in builder.finished]
        if todo:
            per_frame = builder.codec.bytes_per_frame(builder.output.dim)
            size = predict_bytes(sum(todo, Volume()), builder.output, per_frame)
            # The other processes write about as much to the same disk.
            predicted[builder.name] = world.size * size
    if predicted:
        check_disk(shar_dir, predicted)
    for builder in builders:
        if builder.name in predicted:
            builder.remove_stale_files(
                [shard for shard in volumes if shard not in builder.finished]
            )


def _write_fields(
    shar_dir: Pathlike,
    shard: str,
    builders: Sequence[FieldBuilder],
    teachers: Sequence[Teacher],
    max_batch_duration: float,
    add_cut: Callable[[float], None],
) -> None:
    """Write one shard of several fields, reading its audio once."""
    recording = recording_path(shar_dir, shard)
    if not recording.is_file():
        raise FileNotFoundError(
            f"{recording} is missing. Copy it, or write the Shar again with "
            "'python -m icefall_kd.bin.make_shar'"
        )
    names = {b.name for b in builders}
    needed = [t for t in teachers if names & set(t.outputs)]
    keys = read_keys(cuts_path(shar_dir, shard))
    with contextlib.ExitStack() as stack:
        writers = {
            b.name: stack.enter_context(
                write_shard(
                    shar_dir,
                    b.name,
                    shard,
                    keys,
                    frame_shift=b.output.frame_shift,
                    codec=b.codec,
                    fingerprint=b.fingerprint,
                )
            )
            for b in builders
        }
        cuts = ShardCuts([audio_shard(shar_dir, shard)])
        results = run_teachers(cuts, needed, max_batch_duration)
        for (cut_id, arrays), key in zip(results, keys):
            for name, writer in writers.items():
                writer.write(cut_id, arrays[name])
            add_cut(key[3])


def _log_fields(
    shar_dir: Pathlike, infos: Mapping[str, FieldInfo], summary: ExtractionSummary
) -> None:
    for name, info in infos.items():
        logging.info(
            "%s: %d cuts, %d frames of %d values, %s, %.1f MB",
            info_path(shar_dir, name),
            info.num_cuts,
            info.num_frames,
            info.dim,
            info.codec,
            sum(shard["bytes"] for shard in info.shards) / 1e6,
        )
    for name, missing in summary.missing.items():
        logging.info(
            "%s: not written yet, other processes have to finish %d shards",
            info_path(shar_dir, name),
            missing,
        )


def measure_speed(
    shar_dir: Pathlike,
    teachers: Sequence[Teacher],
    codecs: Sequence[str],
    *,
    max_batch_duration: float = 60.0,
    seconds: float = 240.0,
    seed: int = 0,
) -> Speed:
    """Measure the speed of teachers and codecs on random cuts.

    Args:
      codecs: codecs of the embeddings, for example ["fp16", "pq16"].
      seconds: duration of the audio to measure on; at most the complete set.
    """
    cuts = list(sample_cuts(shar_dir, seconds, seed))
    total = sum(cut.duration for cut in cuts)
    reading, _ = _time_teachers(cuts, [], max_batch_duration)
    by_teacher: dict[str, float] = {}
    by_codec: dict[tuple[str, str], Optional[float]] = {}
    for teacher in teachers:
        elapsed, results = _time_teachers(cuts, [teacher], max_batch_duration)
        by_teacher[teacher.name] = max(0.0, elapsed - reading) / total
        for name, output in teacher.outputs.items():
            frames = [arrays[name] for arrays in results]
            for spec in {codec_for_kind(output.kind, codec) for codec in codecs}:
                codec = _get_codec_to_time(shar_dir, name, spec, frames)
                by_codec[name, spec] = (
                    None if codec is None else _time_codec(codec, frames) / total
                )
    return Speed(reading / total, by_teacher, by_codec, total)


def _time_teachers(
    cuts: Sequence[Cut], teachers: Sequence[Teacher], max_batch_duration: float
) -> tuple[float, list[Arrays]]:
    """Return the seconds for reading and forward pass, and the teachers' outputs."""
    list(run_teachers(cuts[:_WARM_UP_CUTS], teachers, max_batch_duration))
    start = time.perf_counter()
    results = [arrays for _, arrays in run_teachers(cuts, teachers, max_batch_duration)]
    return time.perf_counter() - start, results


def _get_codec_to_time(
    shar_dir: Pathlike, name: str, spec: str, frames: list[np.ndarray]
) -> Optional[Codec]:
    """Return the stored codec of a field, or one trained on ``frames``.

    Returns None if the training takes minutes or is impossible.
    """
    cls, _ = find_codec(spec)
    if not cls.trained:
        return make_codec(spec)
    if codec_path(shar_dir, name).is_file():
        codec = read_codec(shar_dir, name)
        if codec.spec == spec:
            return codec
    if cls.name in _SLOW_TO_TRAIN:
        return None
    try:
        return train_codec(spec, np.concatenate(frames))
    except ValueError:  # too few frames, or a package is not installed
        return None


def _time_codec(codec: Codec, frames: list[np.ndarray]) -> float:
    """Return the seconds that a :class:`ShardWriter` spends on the frames."""
    sum_frames(codec, codec.encode(frames[0]))
    start = time.perf_counter()
    for x in frames:
        sum_frames(codec, codec.encode(x))
    return time.perf_counter() - start
