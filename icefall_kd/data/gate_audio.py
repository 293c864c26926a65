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

# Allowed difference between a manifest and its audio in seconds (400 samples).  Kaldi's
# files, and lhotse's import of them, round durations to 1, 10 or 25 ms.
TOLERANCE = 0.025
# Of a recording more than this many times longer than a cut, only the cut is read.
LONG = 2.0
ROUNDING = 2  # samples that a resampler may return less than lhotse predicts

Fault = Optional[tuple[str, str]]  # (key of gate.REASONS, detail), None without fault


def check_audio(cut: Cut) -> tuple[Fault, int]:
    """Return the fault of a cut's audio, and the number of samples missing at its end.

    Missing samples within the tolerance are not a fault; the caller shortens the cut
    with :func:`shorten_cut`.
    """
    if not cut.has_recording:
        return ("unreadable", "no audio"), 0
    missing_file = _find_missing_file(cut.recording)
    if missing_file:
        return ("unreadable", missing_file), 0
    read_all = cut.recording.duration <= LONG * cut.duration
    try:
        found, declared = _read_header_length(cut.recording)
        if _differ(cut, found, declared):
            detail = f"{found} samples in its file, {declared} declared"
            return ("wrong_length", detail), 0
        if read_all and (detail := _find_truncation(cut.recording)):
            return ("wrong_length", detail), 0
        with _allow_any_length():
            samples = decode_cut(cut, read_all)
    except Exception as e:  # decoders raise errors of any type
        line = " ".join(f"{type(e).__name__}: {e}".split())
        return ("unreadable", line if len(line) <= 200 else f"{line[:197]}..."), 0
    if read_all:
        found, declared = samples.shape[1], cut.recording.num_samples
        if _differ(cut, found, declared):
            return ("wrong_length", f"{found} samples, {declared} declared"), 0
        first = compute_num_samples(cut.start, cut.sampling_rate)
        samples = samples[:, first : first + cut.num_samples]
    num_missing = cut.num_samples - samples.shape[1]
    if _differ(cut, num_missing, 0):
        detail = f"{samples.shape[1]} samples at its time, {cut.num_samples} declared"
        return ("wrong_length", detail), 0
    if not np.isfinite(samples).all():
        bad = int(np.count_nonzero(~np.isfinite(samples)))
        return ("not_finite", f"{bad} of {samples.size} samples"), 0
    negligible = ROUNDING if cut.recording.transforms else 0
    return None, num_missing if num_missing > negligible else 0


def get_tolerance(cut: Cut) -> float:
    """Return the allowed difference between manifest and audio in seconds.

    It is inversely proportional to the speed, so that a cut passes at all speeds or at
    none.
    """
    speed = (cut.custom or {}).get("speed", 1.0)
    transforms = cut.recording.transforms
    return TOLERANCE / speed + (ROUNDING / SAMPLE_RATE if transforms else 0)


def decode_cut(cut: Cut, read_all: bool) -> np.ndarray:
    """Return the samples (channels, S) that the audio of a cut really has.

    Recording.load_audio of lhotse pads (by reflection) or trims audio whose length
    differs by up to 0.5 s from the manifest.  This function does neither.

    Args:
      read_all: return the complete recording, not only the cut's part.  For a recording
        with many cuts, reading all of it for each cut would take quadratic time.
    """
    recording: Recording = cut.recording
    offset, duration = (0.0, None) if read_all else (cut.start, cut.duration)
    transforms = _load_transforms(recording)
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


def shorten_cut(cut: Cut, num_samples: int) -> Cut:
    """Return a cut, with its supervisions, that ends ``num_samples`` earlier."""
    duration = (cut.num_samples - num_samples) / cut.sampling_rate
    supervisions = [
        fastcopy(s, duration=min(s.duration, duration - s.start))
        for s in cut.supervisions
    ]
    return fastcopy(cut, duration=duration, supervisions=supervisions)


def _differ(cut: Cut, found: int, declared: int) -> bool:
    return abs(found - declared) > get_tolerance(cut) * SAMPLE_RATE


def _find_missing_file(recording: Recording) -> str:
    """Return a description of the recording's first missing file, else ""."""
    for source in recording.sources:
        if source.type == "file" and not Path(source.source).exists():
            is_relative = not Path(source.source).is_absolute()
            folder = f" in the working directory {Path.cwd()}" if is_relative else ""
            return f"no file {source.source}{folder}"
    return ""


def _read_header_length(recording: Recording) -> tuple[int, int]:
    """Return the numbers of samples by the file's header and by the manifest.

    Both are at the rate and the speed of the recording, so that a wrong header is found
    at every speed.
    """
    declared = recording.num_samples
    if recording.sources[0].type != "file":
        return declared, declared  # the header is read with the audio
    header = _read_info(recording.sources[0].source)
    if not recording.transforms:
        return header.frames, declared
    speed = math.prod(
        t.factor for t in _load_transforms(recording) if isinstance(t, (Speed, Tempo))
    )
    return round(header.duration * recording.sampling_rate / speed), declared


def _load_transforms(recording: Recording) -> list[AudioTransform]:
    """Return the transforms of a recording, which a manifest may store as dicts."""
    return [
        t if isinstance(t, AudioTransform) else AudioTransform.from_dict(t)
        for t in recording.transforms or ()
    ]


def _find_truncation(recording: Recording) -> str:
    """Return a description if a wav file is shorter than its header declares, else "".

    libsndfile does not find this, because it corrects the duration by the file's size.
    """
    if recording.sources[0].type != "file":
        return ""
    path = recording.sources[0].source
    with open(path, "rb") as file:
        declared = audio_files.read_wav_seconds(file)
    found = _read_info(path).duration
    if declared is None or found >= declared - audio_files.TOLERANCE:
        return ""
    return f"its file has {found:.2f} s of the {declared:.2f} s that it declares"


@functools.lru_cache(maxsize=1024)
def _read_info(path: str) -> Any:
    """Return lhotse's info of a file: ``frames``, ``duration`` in seconds and more."""
    return info(path)


@contextlib.contextmanager
def _allow_any_length() -> Iterator[None]:
    """Let lhotse return audio that is shorter than requested."""

    def set_tolerance(seconds: float) -> None:
        logging.disable(logging.INFO)  # lhotse logs each change
        set_audio_duration_mismatch_tolerance(seconds)
        logging.disable(logging.NOTSET)

    before = get_audio_duration_mismatch_tolerance()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_tolerance(math.inf)
        try:
            yield
        finally:
            set_tolerance(before)
