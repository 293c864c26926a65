"""How fast teachers and codecs are here, measured on a few cuts.

What an extraction will take in room and in time, as a table and as plain data.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
from lhotse.cut import Cut

from icefall_kd.core.files import Pathlike
from icefall_kd.fields.codec_choice import spec_of
from icefall_kd.fields.codec_files import codec_path, read_codec
from icefall_kd.fields.codecs import (
    Codec,
    bytes_per_frame,
    find_codec,
    make_codec,
    train_codec,
)
from icefall_kd.fields.planner import Volume, predict_bytes, with_margin
from icefall_kd.fields.run_teachers import Arrays, sample_cuts, teach
from icefall_kd.fields.writer import moments
from icefall_kd.teachers.protocol import Output, Teacher

_WARM_UP = 4  # cuts that are heard before the clock runs
_SLOW_TO_TRAIN = ("mvq",)  # minutes; not trained for a probe


@dataclass(frozen=True)
class Speed:
    """Seconds that one second of audio takes in one process.

    Attributes:
      reading:  of the audio.
      teachers: by name, their computing alone.
      codecs:   (field, codec) -> encoding and statistics; None where that codec
                could not be had for the probe.
      seconds:  of audio that were probed.
    """

    reading: float
    teachers: Mapping[str, float]
    codecs: Mapping[tuple[str, str], Optional[float]]
    seconds: float


def probe_speed(
    shar_dir: Pathlike,
    teachers: Sequence[Teacher],
    codecs: Sequence[str],
    *,
    max_batch_duration: float = 60.0,
    seconds: float = 240.0,
    seed: int = 0,
) -> Speed:
    """Let teachers hear cuts drawn at random, and time them and their codecs.

    A codec that is trained is the one of the folder, else one trained on what the
    teacher says here.

    Args:
      codecs:  of embeddings, to time.
      seconds: of audio; less where the set is small.
    """
    cuts = list(sample_cuts(shar_dir, seconds, seed))
    total = sum(cut.duration for cut in cuts)
    reading, _ = _hear(cuts, [], max_batch_duration)
    by_teacher: dict[str, float] = {}
    by_codec: dict[tuple[str, str], Optional[float]] = {}
    for teacher in teachers:
        elapsed, said = _hear(cuts, [teacher], max_batch_duration)
        by_teacher[teacher.name] = max(0.0, elapsed - reading) / total
        for field, output in teacher.outputs.items():
            frames = [arrays[field] for arrays in said]
            for spec in {spec_of(output, codec): None for codec in codecs}:
                codec = _codec(shar_dir, field, spec, frames)
                cost = None if codec is None else _encoding_time(codec, frames) / total
                by_codec[field, spec] = cost
    return Speed(reading / total, by_teacher, by_codec, total)


def _hear(
    cuts: Sequence[Cut], teachers: Sequence[Teacher], max_batch_duration: float
) -> tuple[float, list[Arrays]]:
    """Return the s that hearing the cuts takes, after a warm-up, and what was said."""
    list(teach(cuts[:_WARM_UP], teachers, max_batch_duration))
    start = time.perf_counter()
    said = [arrays for _, arrays in teach(cuts, teachers, max_batch_duration)]
    return time.perf_counter() - start, said


def _codec(
    shar_dir: Pathlike, field: str, spec: str, frames: list[np.ndarray]
) -> Optional[Codec]:
    cls, _ = find_codec(spec)
    if not cls.trained:
        return make_codec(spec)
    if codec_path(shar_dir, field).is_file():
        codec = read_codec(shar_dir, field)
        if codec.spec == spec:
            return codec
    if cls.name in _SLOW_TO_TRAIN:
        return None
    try:
        return train_codec(spec, np.concatenate(frames))
    except ValueError:  # too few frames, or its library is not installed
        return None


def _encoding_time(codec: Codec, frames: list[np.ndarray]) -> float:
    """Return s for what a shard's writer does to the frames."""
    moments(codec, codec.encode(frames[0]))
    start = time.perf_counter()
    for x in frames:
        moments(codec, codec.encode(x))
    return time.perf_counter() - start


_DIMS = re.compile(r"([A-Za-z_]\w*)=(\d+)@(\d+(?:\.\d+)?)")


def parse_dims(texts: Sequence[str]) -> dict[str, Output]:
    """Return outputs that are described without a teacher: NAME=VALUES@HZ each.

    Raises:
      ValueError: if a text is of another form.

    >>> parse_dims(["wavlm_large=1024@50"])["wavlm_large"].frame_shift
    0.02
    """
    outputs = {}
    for text in texts:
        match = _DIMS.fullmatch(text)
        if match is None or float(match[3]) == 0:
            raise ValueError(f"--dims {text}: expected NAME=VALUES@HZ, as a=1024@50")
        outputs[match[1]] = Output("embedding", int(match[2]), 1 / float(match[3]), {})
    return outputs


def forecast(
    volume: Volume,
    outputs: Mapping[str, Output],
    codecs: Sequence[str],
    *,
    free: Optional[int] = None,
    speed: Optional[Speed] = None,
) -> dict[str, Any]:
    """Return what an extraction will take, for each codec of the embeddings.

    Args:
      volume:  of the audio.
      outputs: by field.
      codecs:  to compare.
      free:    bytes; None where it is not known.
      speed:   None leaves out the hours.
    Returns:
      "hours_of_audio", "cuts", "shards", "free_bytes"; "fields": {field, codec, dim,
      rate_hz, bytes_per_frame, bytes} each; "totals": {codec, bytes, needed_bytes,
      fits, hours} for each codec; and, with a speed, "hours": {reading, teachers,
      codecs} of one process.
    """
    rows = [_row(volume, f, o, spec) for f, o in outputs.items() for spec in codecs]
    result: dict[str, Any] = {
        "hours_of_audio": volume.seconds / 3600,
        "cuts": volume.num_cuts,
        "shards": volume.num_shards,
        "free_bytes": free,
        "fields": [row for n, row in enumerate(rows) if row not in rows[:n]],
        "totals": [
            _total(rows[n :: len(codecs)], c, free) for n, c in enumerate(codecs)
        ],
    }
    if speed is not None:
        _add_hours(result, volume, outputs, speed)
    return result


def _row(volume: Volume, field: str, output: Output, codec: str) -> dict[str, Any]:
    spec = spec_of(output, codec)
    per_frame = bytes_per_frame(spec, output.dim)
    return {
        "field": field,
        "codec": spec,
        "dim": output.dim,
        "rate_hz": round(1 / output.frame_shift, 3),
        "bytes_per_frame": per_frame,
        "bytes": predict_bytes(volume, output, per_frame),
    }


def _total(
    rows: Sequence[Mapping[str, Any]], codec: str, free: Optional[int]
) -> dict[str, Any]:
    total = sum(row["bytes"] for row in rows)
    needed = with_margin(total)
    return {
        "codec": codec,
        "bytes": total,
        "needed_bytes": needed,
        "fits": None if free is None else free >= needed,
        "hours": None,
    }


def _add_hours(
    result: dict[str, Any],
    volume: Volume,
    outputs: Mapping[str, Output],
    speed: Speed,
) -> None:
    hours = volume.seconds / 3600
    teachers = {name: hours * cost for name, cost in speed.teachers.items()}
    codecs = {}
    for total in result["totals"]:
        costs = [
            speed.codecs[f, spec_of(o, total["codec"])] for f, o in outputs.items()
        ]
        known = None if None in costs else hours * sum(costs)
        codecs[total["codec"]] = known
        total["hours"] = hours * speed.reading + sum(teachers.values()) + (known or 0.0)
    result["hours"] = {
        "probed_s": speed.seconds,
        "reading": hours * speed.reading,
        "teachers": teachers,
        "codecs": codecs,
    }


def as_table(result: Mapping[str, Any]) -> str:
    """Return a forecast for people to read."""
    head = ["field", "codec", "values", "Hz", "bytes/frame", "GB"]
    rows = [
        [
            row["field"],
            row["codec"],
            str(row["dim"]),
            f"{row['rate_hz']:g}",
            f"{row['bytes_per_frame']:g}",
            _gigabytes(row["bytes"]),
        ]
        for row in result["fields"]
    ]
    rows += [
        ["all", total["codec"], "", "", "", _gigabytes(total["bytes"])]
        for total in result["totals"]
    ]
    title = "{hours_of_audio:,.1f} h of audio, {cuts:,} cuts, {shards:,} shards"
    lines = [title.format(**result), *_aligned([head, *rows])]
    if result["free_bytes"] is not None:
        lines += ["", f"free: {_gigabytes(result['free_bytes'])} GB"]
        lines += [
            f"{t['codec']} needs {_gigabytes(t['needed_bytes'])} GB with a tenth to "
            f"spare: {'enough' if t['fits'] else 'NOT ENOUGH'}"
            for t in result["totals"]
        ]
    if "hours" in result:
        lines += ["", *_hours(result)]
    return "\n".join(lines)


def _hours(result: Mapping[str, Any]) -> list[str]:
    hours = result["hours"]
    rows = [["reading audio", f"{hours['reading']:,.3f}"]]
    rows += [[name, f"{h:,.3f}"] for name, h in hours["teachers"].items()]
    for codec, h in hours["codecs"].items():
        rows.append([f"codec {codec}", "not timed" if h is None else f"{h:,.3f}"])
    rows += [[f"all, {t['codec']}", f"{t['hours']:,.3f}"] for t in result["totals"]]
    title = f"hours of one process (from a probe of {hours['probed_s']:.0f} s of audio)"
    return [title, *_aligned(rows)]


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.{3 if count < 1e9 else 1}f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines; the first two columns to the left, numbers to the right."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if n < 2 and len(row) > 2 or n == 0 else text.rjust(width)
            for n, (text, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
