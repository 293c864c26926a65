"""Word times in CTM files, and the transcripts and channels of a Shar set.

A line of a CTM file is ``recording channel start duration word confidence``, times in
seconds; lines that start with ``;;`` are comments (NIST's sclite).  Each cut of a Shar
set has its own recording: the first column is the cut id, and times start at the
cut's start.

Lhotse can read these files.  This module does not use Lhotse's reader and writer: they
round to 10 ms, drop words that end after the rounded end of a recording, and do not
report the line of an error.

``<file>.json`` stores the checkpoint of the aligner, because Lhotse cannot read a CTM
file with comments.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

from lhotse.cut import Cut
from lhotse.serialization import deserialize_item
from lhotse.supervision import AlignmentItem

from icefall_kd.core.files import (
    Pathlike,
    as_path,
    open_text,
    read_json,
    sha256_file,
    write_json,
    write_text,
)
from icefall_kd.fields.format import cuts_path, shard_ids
from icefall_kd.fields.shards import Shard
from icefall_kd.recognition.forced_alignment import MAX_EXAMPLES, WordTimes
from icefall_kd.recognition.recognise import reference_words


def write_ctm(
    path: Pathlike,
    times: WordTimes,
    channels: Mapping[str, int],
    info: Optional[Mapping[str, Any]] = None,
) -> None:
    """Write a CTM file sorted by cut id, and its JSON.

    Args:
      times: words of each cut.
      channels: cut id -> channel of its recording; 0 for cuts that are not included.
      info: entries of the JSON, with ``checkpoint`` and ``checkpoint_sha256`` of the
        aligner; None writes no JSON.
    Raises:
      ValueError: if a cut id contains a space, which CTM does not allow.
    """
    invalid = [cut_id for cut_id in times if len(cut_id.split()) != 1]
    if invalid:
        raise ValueError(
            f"{path}: {len(invalid)} cut ids contain spaces, which CTM does not allow, "
            f"for example {invalid[:MAX_EXAMPLES]}; rename the cuts"
        )
    text = "".join(
        f"{cut_id} {channels.get(cut_id, 0)} {item.start:.3f} {item.duration:.3f} "
        f"{item.symbol} {1.0 if item.score is None else item.score:.3f}\n"
        for cut_id, items in sorted(times.items())
        for item in items
    )
    write_text(path, text)
    if info is not None:
        sha256 = sha256_file(path)
        write_json(ctm_info_path(path), {**info, "alignment_sha256": sha256})


def ctm_info_path(path: Pathlike) -> Path:
    """Return the path of the JSON of a CTM file."""
    path = as_path(path)
    return path.with_name(f"{path.name}.json")


def alignment_info(path: Pathlike) -> dict[str, Optional[str]]:
    """Return the entries of a result JSON about an alignment and its aligner.

    The entries about the aligner are None if bin.align did not write the CTM file, or
    if the file was changed afterwards.
    """
    info = {"alignment": str(path), "alignment_sha256": sha256_file(path)}
    json_path = ctm_info_path(path)
    aligner = read_json(json_path) if json_path.is_file() else {}
    if aligner.get("alignment_sha256") != info["alignment_sha256"]:
        aligner = {}
    return {
        **info,
        "aligner": aligner.get("checkpoint"),
        "aligner_sha256": aligner.get("checkpoint_sha256"),
    }


def read_ctm(path: Pathlike) -> WordTimes:
    """Return the words of each recording in a CTM file, sorted by start time.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if a line is malformed; the message names file and line.
    """
    found: WordTimes = {}
    try:
        with open_text(path) as f:
            for number, line in enumerate(f, 1):
                if line.strip() and not line.startswith(";;"):
                    cut_id, item = _parse_line(line, f"{path}:{number}")
                    found.setdefault(cut_id, []).append(item)
    except FileNotFoundError as e:
        raise FileNotFoundError(
            f"{path}: alignment not found; 'python -m icefall_kd.bin.align' writes it"
        ) from e
    return {k: sorted(items, key=lambda item: item.start) for k, items in found.items()}


def _parse_line(line: str, where: str) -> tuple[str, AlignmentItem]:
    try:
        cut_id, _, start, duration, word, *score = line.split()
        times = [float(x) for x in (start, duration, *score)]
        if len(score) > 1 or not all(0 <= x < float("inf") for x in times):
            raise ValueError
    except ValueError as e:
        raise ValueError(
            f"{where}: invalid line {line.strip()!r}; a line of a CTM file is "
            "'recording channel start duration word confidence'"
        ) from e
    return cut_id, AlignmentItem(word, *times[:2], times[2] if score else None)


def load_alignment(path: Pathlike, shar_dir: Pathlike) -> WordTimes:
    """Read the alignment of a Shar set and validate it against the transcripts.

    The file may contain further cuts.

    Raises:
      FileNotFoundError: if the file or the set does not exist.
      ValueError: if cuts are missing in the file or have different words; the message
        has their number and examples.
    """
    times, transcripts = read_ctm(path), read_transcripts(shar_dir)
    words = {k: [item.symbol for item in items] for k, items in times.items()}
    missing = [k for k, text in transcripts.items() if text and k not in words]
    different = [k for k, text in transcripts.items() if words.get(k, text) != text]
    problems = []
    if missing:
        problems.append(
            f"{len(missing)} of {len(transcripts)} cuts are missing, for example "
            f"{', '.join(missing[:MAX_EXAMPLES])}"
        )
    if different:
        examples = "; ".join(
            f"{k} has '{' '.join(words[k])}' instead of '{' '.join(transcripts[k])}'"
            for k in different[:MAX_EXAMPLES]
        )
        problems.append(
            f"{len(different)} of {len(transcripts)} cuts have different words, for "
            f"example {examples}"
        )
    if problems:
        raise ValueError(
            f"{path}: not an alignment of {shar_dir}: {'. '.join(problems)}. Align the "
            f"set with 'python -m icefall_kd.bin.align --shar-dir {shar_dir} --output "
            f"{path} --checkpoint FILE'"
        )
    return times


def read_transcripts(shar_dir: Pathlike) -> dict[str, list[str]]:
    """Return the words of each cut of a Shar folder, without reading its audio."""
    return {cut.id: reference_words(cut) for cut in _read_cuts(shar_dir)}


def read_channels(shar_dir: Pathlike) -> dict[str, int]:
    """Return the channel of each cut of a Shar folder, without reading its audio."""
    return {cut.id: getattr(cut, "channel", 0) for cut in _read_cuts(shar_dir)}


def _read_cuts(shar_dir: Pathlike) -> Iterator[Cut]:
    """Yield the cuts of a Shar folder without their data."""
    for shard in shard_ids(shar_dir):
        for line in Shard(cuts_path(shar_dir, shard), {}).lines():
            yield deserialize_item(line)


def count_transcripts(shar_dir: Pathlike) -> tuple[int, int]:
    """Return the number of cuts of a Shar folder, and of those with a transcript.

    Log a warning if a cut has no transcript.

    Raises:
      FileNotFoundError: if ``shar_dir`` is not a Shar folder.
    """
    words = list(read_transcripts(shar_dir).values())
    labelled = sum(map(bool, words))
    if not labelled:
        logging.warning(
            "%s: no cut has a transcript; the results contain hypotheses, but no WER",
            shar_dir,
        )
    elif labelled < len(words):
        logging.warning(
            "%s: %d of %d cuts have no transcript; each word recognised in them counts "
            "as an insertion",
            *(shar_dir, len(words) - labelled, len(words)),
        )
    return len(words), labelled
