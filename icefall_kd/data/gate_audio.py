"""Compare the audio of a cut with its manifest: length, readability, finite samples."""

import contextlib
import functools
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import numpy as np
from lhotse import Recording
from lhotse.audio import (
    get_audio_duration_mismatch_tolerance,
    info,
    set_audio_duration_mismatch_tolerance,
)
from lhotse.augmentation import AudioTransform, Speed, Tempo
from lhotse.cut import Cut
from lhotse.utils import compute_num_samples, fastcopy

from icefall_kd import SAMPLE_RATE
from icefall_kd.data import audio_files
from icefall_kd.data.audio_files import wav_seconds

# Manifests with rounded durations differ from their audio by up to so many seconds, 400
# samples: Kaldi's files, and lhotse's import of them, round to 1, 10 or 25 ms.
TOLERANCE = 0.025
LONG = 2.0  # a recording of so many times a cut's length has others in it
ROUNDING = 2  # samples that a resampler may give less than lhotse predicts

Finding = Optional[tuple[str, str]]  # reason and detail, or None: nothing is wrong


def check_audio_of(cut: Cut) -> tuple[Finding, int]:
    """Return what is wrong with a cut's audio, and the samples that its end lacks."""
    if not cut.has_recording:
        return ("unreadable", "no audio"), 0
    absent = _absent_file(cut.recording)
    if absent:
        return ("unreadable", absent), 0
    whole = cut.recording.duration <= LONG * cut.duration
    try:
        there, declared = _header_length(cut.recording)
        if _differ(cut, there, declared):
            detail = f"{there} samples in its file, {declared} declared"
            return ("wrong_length", detail), 0
        if whole and (detail := _find_truncation(cut.recording)):
            return ("wrong_length", detail), 0
        with _any_length():
            samples = decode(cut, whole)
    except Exception as e:  # whatever a decoder raises: the cut is named, not skipped
        return ("unreadable", _one_line(e)), 0
    if whole:
        there, declared = samples.shape[1], cut.recording.num_samples
        if _differ(cut, there, declared):
            return ("wrong_length", f"{there} samples, {declared} declared"), 0
        first = compute_num_samples(cut.start, cut.sampling_rate)
        samples = samples[:, first : first + cut.num_samples]
    lacks = cut.num_samples - samples.shape[1]
    if _differ(cut, lacks, 0):
        detail = f"{samples.shape[1]} samples at its time, {cut.num_samples} declared"
        return ("wrong_length", detail), 0
    if not np.isfinite(samples).all():
        bad = int(np.count_nonzero(~np.isfinite(samples)))
        return ("not_finite", f"{bad} of {samples.size} samples"), 0
    return None, lacks if lacks > (ROUNDING if cut.recording.transforms else 0) else 0


def tolerance(cut: Cut) -> float:
    """Return by how many seconds a cut's manifest and audio may differ."""
    speed = (cut.custom or {}).get("speed", 1.0)  # so that all speeds pass, or none
    transforms = cut.recording.transforms
    return TOLERANCE / speed + (ROUNDING / SAMPLE_RATE if transforms else 0)


def _differ(cut: Cut, there: int, declared: int) -> bool:
    return abs(there - declared) > tolerance(cut) * SAMPLE_RATE


def _absent_file(recording: Recording) -> str:
    """Return which file of a recording does not exist, "" if none is absent."""
    for source in recording.sources:
        if source.type == "file" and not Path(source.source).exists():
            relative = not Path(source.source).is_absolute()
            where = f" in the working directory {Path.cwd()}" if relative else ""
            return f"no file {source.source}{where}"
    return ""


def decode(cut: Cut, whole: bool) -> np.ndarray:
    """Return the samples (channels, S) that can be decoded of a cut.

    Recording.load_audio pads with mirrored audio, or cuts, what differs by up to 0.5 s
    from what is declared; here it keeps its length.

    Args:
      whole: decode the whole recording, not the cut's part: of a recording with many
        cuts reading all of it for each would take the square of its length.
    """
    recording: Recording = cut.recording
    offset, duration = (0.0, None) if whole else (cut.start, cut.duration)
    transforms = _transforms(recording)
    for transform in reversed(transforms):
        offset, duration = transform.reverse_timestamps(
            offset, duration, recording.sampling_rate
        )
    samples = np.concatenate(
        [
            np.atleast_2d(
                source.load_audio(
                    offset, duration, force_opus_sampling_rate=recording.sampling_rate
                )
            )
            for source in recording.sources
        ]
    )
    channels = [cut.channel] if isinstance(cut.channel, int) else cut.channel
    samples = samples[[recording.channel_ids.index(c) for c in channels]]
    for transform in transforms:
        samples = transform(samples, recording.sampling_rate)
    return samples


def shorten(cut: Cut, num_samples: int) -> Cut:
    """Return a cut that ends ``num_samples`` earlier, with its supervisions."""
    duration = (cut.num_samples - num_samples) / cut.sampling_rate
    supervisions = [
        fastcopy(s, duration=min(s.duration, duration - s.start))
        for s in cut.supervisions
    ]
    return fastcopy(cut, duration=duration, supervisions=supervisions)


def _header_length(recording: Recording) -> tuple[int, int]:
    """Return the samples by the header of a recording's file, and those declared.

    Both at the recording's rate and speed, so that a header that is wrong at one speed
    is wrong at all.
    """
    declared = recording.num_samples
    if recording.sources[0].type != "file":
        return declared, declared  # is read as a whole, or its part is
    header = _header(recording.sources[0].source)
    if not recording.transforms:
        return header.frames, declared
    speed = math.prod(
        t.factor for t in _transforms(recording) if isinstance(t, (Speed, Tempo))
    )
    return round(header.duration * recording.sampling_rate / speed), declared


def _transforms(recording: Recording) -> list[AudioTransform]:
    """Return the transforms of a recording, which a manifest may hold as plain data."""
    return [
        t if isinstance(t, AudioTransform) else AudioTransform.from_dict(t)
        for t in recording.transforms or ()
    ]


def _find_truncation(recording: Recording) -> str:
    """Return what a wav file lacks of its declared length, "" if nothing.

    libsndfile takes the length from the size of the file instead.
    """
    if recording.sources[0].type != "file":
        return ""
    path = recording.sources[0].source
    with open(path, "rb") as file:
        declared = wav_seconds(file)
    there = _header(path).duration
    if declared is None or there >= declared - audio_files.TOLERANCE:
        return ""
    return f"its file has {there:.2f} s of the {declared:.2f} s that it declares"


@functools.lru_cache(maxsize=1024)
def _header(path: str) -> Any:
    """Return lhotse's info of a file: ``frames``, ``duration`` in s, and others."""
    return info(path)


@contextlib.contextmanager
def _any_length() -> Iterator[None]:
    """Let lhotse return a part of a file that is shorter than what it asked for."""
    before = get_audio_duration_mismatch_tolerance()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.INFO)  # it logs each change of the tolerance
        set_audio_duration_mismatch_tolerance(math.inf)
        logging.disable(logging.NOTSET)
        try:
            yield
        finally:
            logging.disable(logging.INFO)
            set_audio_duration_mismatch_tolerance(before)
            logging.disable(logging.NOTSET)


def _one_line(error: Exception, limit: int = 200) -> str:
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
