"""The data gate: every cut that would hurt a run is dropped, by name and reason."""

import contextlib
import functools
import logging
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Set,
    Tuple,
)

import numpy as np
from lhotse import CutSet, Recording
from lhotse.audio import (
    get_audio_duration_mismatch_tolerance,
    info,
    set_audio_duration_mismatch_tolerance,
)
from lhotse.cut import Cut

from icefall_kd import SAMPLE_RATE
from icefall_kd.data.audio_files import TOLERANCE, wav_seconds
from icefall_kd.data.parallel import parallel_map
from icefall_kd.data.progress import progress
from icefall_kd.data.tokens import UNK_ID
from icefall_kd.io import write_json
from icefall_kd.zipformer.subsampling import MIN_FRAMES, encoder_output_lens

# Reason -> what it means.  A cut is dropped for the first that holds, in this order.
REASONS: Dict[str, str] = {
    "duplicate_id": "another cut of the set has this id",
    "two_supervisions": "a labelled cut has one supervision, this has another number",
    "empty_text": "nothing is said",
    "not_mono": "its audio has several channels",
    "unknown_tokens": "no token of its text is in the vocabulary",
    "too_long": "longer than the limit",
    "too_short": "fewer fbank frames than the model's front end needs for one frame",
    "too_few_frames": "fewer encoder frames than tokens + 1: an infinite loss",
    "unreadable": "its audio cannot be read",
    "wrong_length": "its audio has another number of samples than declared",
    "not_finite": "its audio has NaN or infinite samples",
}
LOGGED_DROPS = 20  # the report has them all
LONG = 2.0  # a recording of so many times a cut's length has others in it
CHUNK = 32  # cuts that a process reads at a time


@dataclass(frozen=True)
class Drop:
    """A dropped cut, a key of :data:`REASONS`, and what exactly was found."""

    cut_id: str
    reason: str
    detail: str


def num_fbank_frames(duration: float) -> int:
    """Return the fbank frames of ``duration`` seconds, as ``compute_fbank`` has."""
    return (round(duration * SAMPLE_RATE) + 80) // 160


def gate(
    cuts: Iterable[Cut],
    *,
    tokenize: Optional[Callable[[str], List[int]]] = None,
    max_duration: float = 30.0,
    check_audio: bool = True,
    unk_id: int = UNK_ID,
    description: str = "data gate",
    num_jobs: int = 1,
) -> Tuple[CutSet, List[Drop]]:
    """Return the cuts that a run can take, and a :class:`Drop` for each other one.

    Args:
      tokenize: text -> token ids; None for unlabelled cuts, whose text and number of
        supervisions are then not looked at.
      max_duration: in seconds.
      check_audio: read the audio too.  False when the same audio was read before.
      num_jobs: processes that read it.
    """
    cuts = list(cuts)
    seen: Set[str] = set()
    findings: List[Finding] = []
    for cut in cuts:
        found = _check_id(cut, seen)
        if found is None and tokenize is not None:
            found = _check_text(cut, tokenize, unk_id)
        findings.append(found or _check_length(cut, tokenize, max_duration))
        seen.add(cut.id)
    if check_audio:
        places = [i for i, found in enumerate(findings) if found is None]
        read = parallel_map(_check_audio, [cuts[i] for i in places], num_jobs, CHUNK)
        heard = progress(read, description, "cut", len(places))
        for i, found in zip(places, heard):
            findings[i] = found
    kept = [cut for cut, found in zip(cuts, findings) if found is None]
    drops = [Drop(c.id, *found) for c, found in zip(cuts, findings) if found]
    for drop in drops[:LOGGED_DROPS]:
        logging.warning("dropped %s: %s, %s", drop.cut_id, drop.reason, drop.detail)
    if len(drops) > LOGGED_DROPS:
        logging.warning("... and %d more, see the report", len(drops) - LOGGED_DROPS)
    counts = Counter(drop.reason for drop in drops)
    logging.info(
        "%s: %d cuts kept, %d dropped%s",
        description,
        len(kept),
        len(drops),
        "".join(f"; {n} {reason}" for reason, n in sorted(counts.items())),
    )
    return CutSet.from_cuts(kept), drops


Finding = Optional[Tuple[str, str]]  # reason and detail, or None: nothing is wrong


def _check_id(cut: Cut, seen: Set[str]) -> Finding:
    return ("duplicate_id", "seen before") if cut.id in seen else None


def _check_text(cut: Cut, tokenize: Callable[[str], List[int]], unk_id: int) -> Finding:
    if len(cut.supervisions) != 1:
        return "two_supervisions", f"{len(cut.supervisions)} supervisions"
    text = cut.supervisions[0].text or ""
    if not text.strip():
        return "empty_text", repr(text)
    tokens = tokenize(text)
    # An unknown word is <unk> behind the token of the space before it.
    if unk_id in tokens and set(tokens) <= set(tokenize("\ue000")):
        return "unknown_tokens", text
    return None


def _check_length(
    cut: Cut, tokenize: Optional[Callable[[str], List[int]]], max_duration: float
) -> Finding:
    if cut.num_channels not in (None, 1):
        return "not_mono", f"{cut.num_channels} channels; a manifest can name one"
    if cut.duration > max_duration:
        return "too_long", f"{cut.duration:.2f} s > {max_duration:g} s"
    frames = num_fbank_frames(cut.duration)
    if frames < MIN_FRAMES:
        return "too_short", f"{frames} fbank frames < {MIN_FRAMES}"
    if tokenize is not None:
        tokens = len(tokenize(cut.supervisions[0].text))
        outputs = int(encoder_output_lens(frames))
        if outputs < tokens + 1:
            return "too_few_frames", f"{outputs} encoder frames for {tokens} tokens"
    return None


def _check_audio(cut: Cut) -> Finding:
    if not cut.has_recording:
        return "unreadable", "no audio"
    try:
        there, declared = _told_length(cut.recording)
        if there != declared:
            return "wrong_length", f"{there} samples in its file, {declared} declared"
        if truncation := _find_truncation(cut):
            return "wrong_length", truncation
        with _small_tolerance():
            samples, declared = _load_as_it_is(cut)
    except Exception as e:  # whatever a decoder raises: the cut is named, not skipped
        if "diverged" in str(e):
            return "wrong_length", _one_line(e)
        return "unreadable", _one_line(e)
    if samples.shape[1] != declared:
        return "wrong_length", f"{samples.shape[1]} samples, {declared} declared"
    if not np.isfinite(samples).all():
        bad = int(np.count_nonzero(~np.isfinite(samples)))
        return "not_finite", f"{bad} of {samples.size} samples"
    return None


def _load_as_it_is(cut: Cut) -> Tuple[np.ndarray, int]:
    """Return a cut's samples (channels, S), and how many there should be."""
    recording: Recording = cut.recording
    if recording.duration > LONG * cut.duration:
        # One of many: reading all of it for each would take the square of its length.
        return cut.load_audio(), cut.num_samples
    if recording.transforms:
        return recording.load_audio(), recording.num_samples
    # Recording.load_audio would pad or cut what differs a little from the declared.
    samples = np.concatenate([source.load_audio() for source in recording.sources])
    return samples, recording.num_samples


def _told_length(recording: Recording) -> Tuple[int, int]:
    """Return the samples by the header of a recording's file, and those declared."""
    declared = recording.num_samples
    if recording.transforms or recording.sources[0].type != "file":
        return declared, declared  # is read as a whole, or its part is
    return _num_samples(recording.sources[0].source), declared


def _find_truncation(cut: Cut) -> Optional[str]:
    """Return what is missing of a wav file; libsndfile trims its length in silence."""
    recording = cut.recording
    path = recording.sources[0].source
    in_file = recording.sources[0].type == "file"
    if not in_file or recording.duration > LONG * cut.duration:
        return None
    with open(path, "rb") as file:
        declared = wav_seconds(file)
    there = info(path).duration
    if declared is None or there >= declared - TOLERANCE:
        return None
    return f"its file has {there:.2f} s of the {declared:.2f} s that it declares"


@functools.lru_cache(maxsize=1024)
def _num_samples(path: str) -> int:
    return info(path).frames


@contextlib.contextmanager
def _small_tolerance(seconds: float = 0.001) -> Iterator[None]:
    """lhotse repairs up to 0.5 s in silence: here only a resampler's rounding."""
    before = get_audio_duration_mismatch_tolerance()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.INFO)  # it logs each change of the tolerance
        set_audio_duration_mismatch_tolerance(seconds)
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


def write_report(
    drops: List[Drop], num_kept: int, path: Path, made_of: Mapping[str, Any]
) -> None:
    """Write the counts by reason and every dropped cut as JSON.

    Args:
      made_of: what the set is made of, and how.
    """
    counts = Counter(drop.reason for drop in drops)
    write_json(
        path,
        {
            "made_of": dict(made_of),
            "kept": num_kept,
            "dropped": len(drops),
            "reasons": {
                reason: {"count": counts[reason], "meaning": REASONS[reason]}
                for reason in REASONS
                if counts[reason]
            },
            "cuts": [vars(drop) for drop in drops],
        },
    )
