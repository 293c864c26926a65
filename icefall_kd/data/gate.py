"""The data gate: drop every cut that would harm a run, and report why."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.cut.data import DataCut

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.files import write_json
from icefall_kd.core.logs import progress
from icefall_kd.core.processes import parallel_map
from icefall_kd.data.features import num_frames
from icefall_kd.data.gate_audio import (
    TOLERANCE,
    Fault,
    check_audio,
    get_tolerance,
    shorten_cut,
)
from icefall_kd.data.tokens import UNK_ID, UnknownLetters, describe_case_difference
from icefall_kd.zipformer.subsampling import MIN_FRAMES, encoder_output_lens

Tokenize = Callable[[str], list[int]]

# Reason for dropping a cut -> its meaning.
REASONS: dict[str, str] = {
    "duplicate_id": "another cut of the set has the same id",
    "mixed_cut": "it is mixed, padded or appended, not a part of one recording",
    "two_supervisions": "a labelled cut needs exactly one supervision",
    "empty_text": "its text is empty",
    "unknown_tokens": "no token of its text is in the vocabulary",
    "not_mono": "its audio has several channels",
    "other_rate": "its sampling rate is not 16 kHz",
    "outside_recording": "it starts outside its recording, or ends over 25 ms after it",
    "too_long": "it is longer than the limit",
    "too_short": "it has fewer fbank frames than the encoder needs for one output",
    "too_few_frames": "encoder frames < tokens + 1: the loss would be infinite",
    "unreadable": "its audio cannot be read",
    "wrong_length": "its audio differs by more than 25 ms from the declared length",
    "not_finite": "its audio has NaN or infinite samples",
}
REMEDIES: dict[str, str] = {
    "duplicate_id": "give each cut a unique id",
    "mixed_cut": "write such cuts to files with lhotse's CutSet.save_audios",
    "two_supervisions": "split such cuts with lhotse's CutSet.trim_to_supervisions, or "
    "join their supervisions with CutSet.merge_supervisions; give no BPE model for an "
    "unlabelled set",
    "empty_text": "correct or remove the text",
    "unknown_tokens": "write the texts in the letters and the case of the BPE model",
    "not_mono": "choose one channel: MultiCut.to_mono of lhotse, or 'sox IN OUT remix "
    "1' for the files",
    "other_rate": "use lhotse's CutSet.resample, or bin.make_shar, which resamples",
    "outside_recording": "correct start and duration, for example in Kaldi's segments",
    "too_few_frames": "check that text and audio belong to the same utterance",
    "unreadable": "check the paths and the files",
    "wrong_length": "make the manifest from the audio files: lhotse's "
    "Recording.from_file, or 'lhotse kaldi import' without a file reco2dur",
}
MAX_EXAMPLES = 5  # cuts logged for each reason; the report lists all
CHUNK = 32  # cuts that a process reads at a time


@dataclass(frozen=True)
class Drop:
    """A dropped cut.

    Attributes:
      reason: the first key of :data:`REASONS` that was found.
      detail: the values that were found.
    """

    cut_id: str
    reason: str
    detail: str


def filter_cuts(
    cuts: Iterable[Cut],
    *,
    tokenize: Optional[Tokenize] = None,
    max_duration: float = 30.0,
    description: str = "data gate",
    num_jobs: int = 1,
) -> tuple[CutSet, list[Drop]]:
    """Return the usable cuts, and a :class:`Drop` for each other cut.

    A cut whose audio ends up to :data:`TOLERANCE` seconds early is shortened to its
    audio.

    Args:
      tokenize: text -> token ids; None for an unlabelled set, whose supervisions are
        not checked.
      max_duration: maximum duration of a cut in seconds.
      description: text before the progress bar and the log lines.
      num_jobs: number of processes that read the audio.
    """
    cuts = list(cuts)
    seen: set[str] = set()
    faults: list[Fault] = []
    for cut in cuts:
        fault = _check_manifest(cut, seen, tokenize)
        faults.append(fault or _check_duration(cut, tokenize, max_duration))
        seen.add(cut.id)
    to_read = [i for i, fault in enumerate(faults) if fault is None]
    results = parallel_map(check_audio, [cuts[i] for i in to_read], num_jobs, CHUNK)
    missing: dict[str, int] = {}
    for i, (fault, num_missing) in zip(
        to_read, progress(results, description, "cut", len(to_read))
    ):
        if fault is None and num_missing:
            missing[cuts[i].id] = num_missing
            cuts[i] = shorten_cut(cuts[i], num_missing)
            fault = _check_duration(cuts[i], tokenize, max_duration)
        faults[i] = fault
    if missing:
        cut_id = max(missing, key=lambda name: missing[name])
        logging.info(
            "%s: %d cuts end after their audio, by up to %d samples (%s), and are "
            "shortened to it; up to %d samples (%g s) are tolerated",
            description,
            len(missing),
            missing[cut_id],
            cut_id,
            round(TOLERANCE * SAMPLE_RATE),
            TOLERANCE,
        )
    kept = [cut for cut, fault in zip(cuts, faults) if fault is None]
    drops = [Drop(cut.id, *fault) for cut, fault in zip(cuts, faults) if fault]
    logging.info("%s: %d cuts kept, %d dropped", description, len(kept), len(drops))
    for line in describe_drops(drops):
        logging.warning("dropped, %s", line)
    return CutSet.from_cuts(kept), drops


def describe_drops(
    drops: Sequence[Drop], max_examples: int = MAX_EXAMPLES
) -> list[str]:
    """Return a line for each reason: number of cuts, meaning, examples and remedy."""
    lines = []
    for reason, meaning in REASONS.items():
        cases = [f"{d.cut_id} ({d.detail})" for d in drops if d.reason == reason]
        if cases:
            examples = ", ".join(cases[:max_examples])
            if len(cases) > max_examples:
                examples += ", ..."
            line = f"{reason}: {len(cases)} cuts, {meaning}: {examples}"
            if reason in REMEDIES:
                line += f". Remedy: {REMEDIES[reason]}"
            lines.append(line)
    return lines


def write_gate_report(
    path: Path,
    drops: Sequence[Drop],
    num_kept: int,
    inputs: Mapping[str, Any],
    letters: Optional[UnknownLetters] = None,
) -> None:
    """Write the counts by reason and every dropped cut as JSON.

    Args:
      num_kept: number of cuts that were kept.
      inputs: options and checksums that determine the set.
      letters: letters that the BPE model lacks; None for an unlabelled set.
    """
    counts = Counter(drop.reason for drop in drops)
    report = {
        "made_of": dict(inputs),
        "kept": num_kept,
        "dropped": len(drops),
        "reasons": {
            reason: {"count": counts[reason], "meaning": meaning}
            for reason, meaning in REASONS.items()
            if counts[reason]
        },
    }
    if letters is not None:
        report["unknown"] = letters.counts()
    write_json(path, {**report, "cuts": [vars(drop) for drop in drops]})


def check_text(
    text: str, tokens: Sequence[int], tokenize: Tokenize, unk_id: int
) -> Fault:
    """Return the fault of a text without usable tokens.

    Args:
      tokens: ids of ``text``.
      tokenize: text -> token ids.
      unk_id: id of ``<unk>``.
    """
    if not text.strip() or not tokens:  # invisible characters have no tokens
        return "empty_text", ascii(text)
    # An unknown word, such as this private-use letter, has the tokens of the space
    # before it and of <unk>.
    if unk_id in tokens and set(tokens) <= set(tokenize("\ue000")):
        difference = describe_case_difference(text, tokenize, unk_id)
        return "unknown_tokens", f"{text}: {difference}" if difference else text
    return None


def check_frames(duration: float, tokens: Optional[Sequence[int]]) -> Fault:
    """Return the fault of a cut with too few frames for the encoder or the loss.

    Args:
      duration: duration of the cut in seconds.
      tokens: ids of its text; None for an unlabelled cut.
    """
    frames = num_frames(round(duration * SAMPLE_RATE))
    if frames < MIN_FRAMES:
        return "too_short", f"{frames} fbank frames < {MIN_FRAMES}"
    outputs = encoder_output_lens(frames)
    if tokens is not None and outputs < len(tokens) + 1:
        return "too_few_frames", f"{outputs} encoder frames for {len(tokens)} tokens"
    return None


def _check_manifest(cut: Cut, seen: set[str], tokenize: Optional[Tokenize]) -> Fault:
    """Check everything in the manifest except the duration.

    Args:
      seen: ids of earlier cuts.
    """
    if cut.id in seen:
        return "duplicate_id", "seen before"
    if not isinstance(cut, DataCut):
        return "mixed_cut", type(cut).__name__
    if tokenize is not None:
        if len(cut.supervisions) != 1:
            return "two_supervisions", f"{len(cut.supervisions)} supervisions"
        text = cut.supervisions[0].text or ""
        fault = check_text(text, tokenize(text), tokenize, UNK_ID)
        if fault is not None:
            return fault
    if cut.num_channels not in (None, 1):
        return "not_mono", f"{cut.num_channels} channels"
    if not cut.has_recording:
        return None  # check_audio reports it
    if cut.sampling_rate != SAMPLE_RATE:
        return "other_rate", f"{cut.sampling_rate} Hz"
    declared = cut.recording.duration
    if not 0 <= cut.start < declared or cut.end > declared + get_tolerance(cut):
        detail = (
            f"{cut.start:.3f} to {cut.end:.3f} s of a recording of {declared:.3f} s"
        )
        return "outside_recording", detail
    return None


def _check_duration(
    cut: Cut, tokenize: Optional[Tokenize], max_duration: float
) -> Fault:
    if cut.duration > max_duration:
        return "too_long", f"{cut.duration:.2f} s > {max_duration:g} s"
    if tokenize is None:
        return check_frames(cut.duration, None)
    return check_frames(cut.duration, tokenize(cut.supervisions[0].text or ""))
