"""How fast teachers and codecs are here, measured on a few cuts."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
from lhotse.cut import Cut

from icefall_kd.cache.codec_file import codec_path, read_codec
from icefall_kd.cache.codecs import Codec, find_codec, make_codec, train_codec
from icefall_kd.cache.obtain import spec_of
from icefall_kd.cache.sample import sample_cuts
from icefall_kd.cache.teach import Arrays, teach
from icefall_kd.cache.writer import moments
from icefall_kd.io import Pathlike
from icefall_kd.teachers.protocol import Teacher

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
