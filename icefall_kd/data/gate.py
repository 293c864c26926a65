"""The data gate: every cut that would hurt a run is dropped, by name and reason."""

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
from icefall_kd.data.gate_audio import (
    TOLERANCE,
    Finding,
    check_audio_of,
    shorten,
    tolerance,
)
from icefall_kd.data.tokens import UNK_ID, UnknownLetters, case_difference
from icefall_kd.zipformer.subsampling import MIN_FRAMES, encoder_output_lens

# Reason -> what it means.  A cut is dropped for the first that holds, in this order.
REASONS: dict[str, str] = {
    "duplicate_id": "another cut of the set has this id",
    "mixed_cut": "it is mixed, padded or appended, not a part of one recording",
    "two_supervisions": "a labelled cut has one supervision, this has another number",
    "empty_text": "its text is empty",
    "unknown_tokens": "no token of its text is in the vocabulary",
    "not_mono": "its audio has several channels",
    "other_rate": "its audio is not of 16 kHz",
    "outside_recording": "it begins or ends outside its recording, by more than 25 ms",
    "too_long": "longer than the limit",
    "too_short": "fewer fbank frames than the model's front end needs for one frame",
    "too_few_frames": "fewer encoder frames than tokens + 1: an infinite loss",
    "unreadable": "its audio cannot be read",
    "wrong_length": "its audio differs by more than 25 ms from the declared length",
    "not_finite": "its audio has NaN or infinite samples",
}
# Reason -> what to do, where the cuts are worth mending.
REMEDIES: dict[str, str] = {
    "duplicate_id": "give each cut an id of its own",
    "mixed_cut": "lhotse's CutSet.save_audios writes such cuts to files",
    "two_supervisions": "lhotse's CutSet.trim_to_supervisions makes a cut of each, "
    "CutSet.merge_supervisions joins them; give no BPE model for a set without "
    "transcripts",
    "empty_text": "correct or remove the text",
    "unknown_tokens": "write the texts in the letters and the case of the BPE model",
    "not_mono": "choose one channel: MultiCut.to_mono of lhotse, or 'sox IN OUT remix "
    "1' for the files",
    "other_rate": "lhotse's CutSet.resample; bin.make_shar resamples by itself",
    "outside_recording": "correct start and duration, for example the file segments of "
    "Kaldi",
    "too_few_frames": "check that text and audio are of the same utterance",
    "unreadable": "check the paths and the files",
    "wrong_length": "make the manifest from the audio files: lhotse's "
    "Recording.from_file, or 'lhotse kaldi import' without a file reco2dur",
}
LOGGED_DROPS = 5  # of each reason; the report has them all
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


def filter_cuts(
    cuts: Iterable[Cut],
    *,
    tokenize: Optional[Callable[[str], list[int]]] = None,
    max_duration: float = 30.0,
    check_audio: bool = True,
    unk_id: int = UNK_ID,
    description: str = "data gate",
    num_jobs: int = 1,
) -> tuple[CutSet, list[Drop]]:
    """Return the cuts that a run can take, and a :class:`Drop` for each other one.

    Args:
      tokenize: text -> token ids; None for unlabelled cuts, whose text and number of
        supervisions are then not looked at.
      max_duration: in seconds.
      check_audio: read the audio too.  False when the same audio was read before.
      num_jobs: processes that read it.
    """
    cuts = list(cuts)
    seen: set[str] = set()
    findings: list[Finding] = []
    for cut in cuts:
        found = _check_manifest(cut, seen, tokenize, unk_id)
        findings.append(found or _check_length(cut, tokenize, max_duration))
        seen.add(cut.id)
    if check_audio:
        places = [i for i, found in enumerate(findings) if found is None]
        read = parallel_map(check_audio_of, [cuts[i] for i in places], num_jobs, CHUNK)
        missing: dict[str, int] = {}
        for i, (found, lacks) in zip(
            places, progress(read, description, "cut", len(places))
        ):
            if found is None and lacks:
                missing[cuts[i].id] = lacks
                cuts[i] = shorten(cuts[i], lacks)
                found = _check_length(cuts[i], tokenize, max_duration)
            findings[i] = found
        _log_missing(missing, description)
    kept = [cut for cut, found in zip(cuts, findings) if found is None]
    drops = [Drop(c.id, *found) for c, found in zip(cuts, findings) if found]
    logging.info("%s: %d cuts kept, %d dropped", description, len(kept), len(drops))
    for reason, line in describe_drops(drops).items():
        logging.warning("dropped, %s: %s", reason, line)
    return CutSet.from_cuts(kept), drops


def describe_drops(
    drops: Sequence[Drop], examples: int = LOGGED_DROPS
) -> dict[str, str]:
    """Return, for each reason, the number of cuts, the first ones and the remedy."""
    lines = {}
    for reason in REASONS:
        cases = [f"{d.cut_id} ({d.detail})" for d in drops if d.reason == reason]
        if cases:
            more = ", ..." if len(cases) > examples else ""
            remedy = REMEDIES.get(reason)
            lines[reason] = (
                f"{len(cases)} cuts, {REASONS[reason]}: "
                f"{', '.join(cases[:examples])}{more}"
                + (f". Remedy: {remedy}" if remedy else "")
            )
    return lines


def _log_missing(missing: Mapping[str, int], description: str) -> None:
    """Log the cuts that are shortened to the audio that there is."""
    if missing:
        cut_id = max(missing, key=lambda name: missing[name])
        logging.info(
            "%s: %d cuts end up to %d samples (%s) after their audio, and are "
            "shortened to it; up to %d samples (%g s) are tolerated",
            description,
            len(missing),
            missing[cut_id],
            cut_id,
            round(TOLERANCE * SAMPLE_RATE),
            TOLERANCE,
        )


def _check_manifest(
    cut: Cut,
    seen: set[str],
    tokenize: Optional[Callable[[str], list[int]]],
    unk_id: int,
) -> Finding:
    if cut.id in seen:
        return "duplicate_id", "seen before"
    if not isinstance(cut, DataCut):
        return "mixed_cut", type(cut).__name__
    if tokenize is not None:
        if len(cut.supervisions) != 1:
            return "two_supervisions", f"{len(cut.supervisions)} supervisions"
        text = cut.supervisions[0].text or ""
        found = check_text(text, tokenize(text), tokenize, unk_id)
        if found is not None:
            return found
    if cut.num_channels not in (None, 1):
        return "not_mono", f"{cut.num_channels} channels"
    if not cut.has_recording:
        return None  # found without reading: its audio is missing
    if cut.sampling_rate != SAMPLE_RATE:
        return "other_rate", f"{cut.sampling_rate} Hz"
    return _check_span(cut)


def check_text(
    text: str,
    tokens: Sequence[int],
    tokenize: Callable[[str], list[int]],
    unk_id: int,
) -> Finding:
    """Return why no token of a text can be trained on, None if some can."""
    if not text.strip() or not tokens:  # invisible characters have none
        return "empty_text", ascii(text)
    # An unknown word is <unk> after the token of the space before it.
    if unk_id in tokens and set(tokens) <= set(tokenize("\ue000")):
        difference = case_difference(text, tokenize, unk_id)
        return "unknown_tokens", f"{text}: {difference}" if difference else text
    return None


def _check_span(cut: Cut) -> Finding:
    """Compare a cut's span with the declared length of its recording."""
    declared = cut.recording.duration
    if 0 <= cut.start < declared and cut.end <= declared + tolerance(cut):
        return None
    return (
        "outside_recording",
        f"{cut.start:.3f} to {cut.end:.3f} s of a recording of {declared:.3f} s",
    )


def _check_length(
    cut: Cut, tokenize: Optional[Callable[[str], list[int]]], max_duration: float
) -> Finding:
    if cut.duration > max_duration:
        return "too_long", f"{cut.duration:.2f} s > {max_duration:g} s"
    text = cut.supervisions[0].text if tokenize is not None else ""
    return check_frames(cut.duration, None if tokenize is None else tokenize(text))


def check_frames(duration: float, tokens: Optional[Sequence[int]]) -> Finding:
    """Return why a cut has too few frames for the model and its loss, None if enough.

    Args:
      duration: in seconds.
      tokens: of its text; None if it is unlabelled.
    """
    frames = num_fbank_frames(duration)
    if frames < MIN_FRAMES:
        return "too_short", f"{frames} fbank frames < {MIN_FRAMES}"
    outputs = int(encoder_output_lens(frames))
    if tokens is not None and outputs < len(tokens) + 1:
        return "too_few_frames", f"{outputs} encoder frames for {len(tokens)} tokens"
    return None


def write_report(
    drops: list[Drop],
    num_kept: int,
    path: Path,
    made_of: Mapping[str, Any],
    letters: Optional[UnknownLetters] = None,
) -> None:
    """Write the counts by reason and every dropped cut as JSON.

    Args:
      made_of: what the set is made of, and how.
      letters: that the tokens lack; None for an unlabelled set.
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
            **({} if letters is None else {"unknown": letters.counts()}),
            "cuts": [vars(drop) for drop in drops],
        },
    )
