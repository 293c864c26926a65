"""Word times as a CTM file, and whether they are those of a set.

A line is ``recording channel start duration word confidence``, times in seconds; lines
that begin with ``;;`` are comments (NIST's sclite).  A Shar set holds the audio of each
cut as a recording of its own: the first column is the id of the cut, and times count
from its start.

lhotse writes and reads CTM too, and reads what is written here; but it rounds to 10 ms,
drops without a word what ends behind a rounded end, and does not say which line of a
file is wrong.

A JSON file next to it, ``<file>.json``, names the checkpoint that aligned: lhotse reads
no comments.

The alignment that a decoding of a set is held against, where there is one.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

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
from icefall_kd.recognition.forced_alignment import SHOWN, WordTimes
from icefall_kd.recognition.recognise import reference_words


def ctm_text(times: WordTimes, channels: Mapping[str, int]) -> str:
    """Return the CTM of a set, sorted by id.

    Args:
      times: of each cut.
      channels: of each cut's recording; 0 where it has none here.
    Raises:
      ValueError: if an id has a space in it, which the form does not allow.
    """
    spaced = [cut_id for cut_id in times if len(cut_id.split()) != 1]
    if spaced:
        raise ValueError(
            f"{len(spaced)} ids of cuts have spaces, for example {spaced[:SHOWN]}; a "
            "CTM file cannot name them: rename them"
        )
    return "".join(
        f"{cut_id} {channels.get(cut_id, 0)} {item.start:.3f} {item.duration:.3f} "
        f"{item.symbol} {1.0 if item.score is None else item.score:.3f}\n"
        for cut_id, items in sorted(times.items())
        for item in items
    )


def write_ctm(
    path: Pathlike,
    times: WordTimes,
    channels: Mapping[str, int],
    facts: Optional[Mapping[str, Any]] = None,
) -> None:
    """Write a CTM file whole or not at all; else as :func:`ctm_text`.

    Args:
      facts: for the JSON file next to it: how the times were found, with the aligner's
        path and SHA-256 as ``checkpoint`` and ``checkpoint_sha256``.
    """
    write_text(path, ctm_text(times, channels))
    if facts is not None:
        write_json(
            ctm_info_path(path), {**facts, "alignment_sha256": sha256_file(path)}
        )


def ctm_info_path(path: Pathlike) -> Path:
    """Return the path of the JSON file next to a CTM file."""
    path = as_path(path)
    return path.with_name(f"{path.name}.json")


def read_ctm(path: Pathlike) -> WordTimes:
    """Read a CTM file, the words of each recording in the order of time.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if a line is not of its form; the message names file and line.
    """
    found: WordTimes = {}
    try:
        with open_text(path) as f:
            for number, line in enumerate(f, 1):
                if line.strip() and not line.startswith(";;"):
                    cut_id, item = _read_line(line, f"{path}:{number}")
                    found.setdefault(cut_id, []).append(item)
    except FileNotFoundError as e:
        raise FileNotFoundError(
            f"{path}: no such alignment; 'python -m icefall_kd.bin.align' writes it"
        ) from e
    return {k: sorted(items, key=lambda item: item.start) for k, items in found.items()}


def _read_line(line: str, where: str) -> tuple[str, AlignmentItem]:
    parts = line.split()
    try:
        cut_id, _, start, duration, word, *score = parts
        times = [float(x) for x in (start, duration, *score)]
        if len(score) > 1 or not all(0 <= x < float("inf") for x in times):
            raise ValueError
    except ValueError as e:
        raise ValueError(
            f"{where}: not a line of a CTM file, 'recording channel start duration "
            f"word confidence': {line.strip()!r}"
        ) from e
    return cut_id, AlignmentItem(word, *times[:2], times[2] if score else None)


def transcripts(shar_dir: Pathlike) -> dict[str, list[str]]:
    """Return the words of each cut of a Shar folder, without reading its audio."""
    return {cut_id: words for cut_id, _, words in _described(shar_dir)}


def count_transcripts(shar_dir: Pathlike) -> tuple[int, int]:
    """Return the number of cuts of a Shar folder, and of those with a transcript.

    Logs a warning if some have none.

    Raises:
      FileNotFoundError: if it is no Shar folder.
    """
    words = list(transcripts(shar_dir).values())
    labelled = sum(map(bool, words))
    if not labelled:
        logging.warning(
            "%s: no cut has a transcript, so there is no WER: hypotheses are written",
            shar_dir,
        )
    elif labelled < len(words):
        logging.warning(
            "%s: %d of %d cuts have no transcript; every word recognised there counts "
            "as an insertion",
            *(shar_dir, len(words) - labelled, len(words)),
        )
    return len(words), labelled


def read_channels(shar_dir: Pathlike) -> dict[str, int]:
    """Return the channel of each cut of a Shar folder, without reading its audio."""
    return {cut_id: channel for cut_id, channel, _ in _described(shar_dir)}


def _described(shar_dir: Pathlike) -> Iterator[tuple[str, int, list[str]]]:
    for shard in shard_ids(shar_dir):
        for line in Shard(cuts_path(shar_dir, shard), {}).lines():
            cut = deserialize_item(line)
            yield cut.id, getattr(cut, "channel", 0), reference_words(cut)


def load_word_times(path: Pathlike, shar_dir: Pathlike) -> WordTimes:
    """Read the alignment of a Shar set, having proved that it is of this set.

    It may hold other cuts as well.

    Raises:
      FileNotFoundError: if there is no such file or set.
      ValueError: if cuts are not in it, or have other words; the message counts them
        and shows some.
    """
    times, said = read_ctm(path), transcripts(shar_dir)
    missing = [k for k, words in said.items() if words and k not in times]
    other = [k for k in said if k in times and _words(times, k) != said[k]]
    problems = []
    if missing:
        problems.append(
            f"{len(missing)} of {len(said)} cuts are not in it, for example "
            f"{', '.join(missing[:SHOWN])}"
        )
    if other:
        shown = "; ".join(
            f"{k} has '{' '.join(_words(times, k))}' in the place of "
            f"'{' '.join(said[k])}'"
            for k in other[:SHOWN]
        )
        problems.append(
            f"{len(other)} of {len(said)} cuts have other words, for example {shown}"
        )
    if problems:
        raise ValueError(
            f"{path}: not an alignment of {shar_dir}: {'. '.join(problems)}. Remedy: "
            f"'python -m icefall_kd.bin.align --shar-dir {shar_dir} --output {path} "
            "--checkpoint FILE'"
        )
    return times


def alignment_info(path: Pathlike) -> dict[str, Optional[str]]:
    """Return the entries of a result JSON about the alignment and its aligner.

    The aligner is None where the CTM file is not one of bin.align, or was changed.
    """
    facts = {"alignment": str(path), "alignment_sha256": sha256_file(path)}
    described = ctm_info_path(path)
    found = read_json(described) if described.is_file() else {}
    if found.get("alignment_sha256") != facts["alignment_sha256"]:
        found = {}
    return {
        **facts,
        "aligner": found.get("checkpoint"),
        "aligner_sha256": found.get("checkpoint_sha256"),
    }


def _words(times: WordTimes, cut_id: str) -> list[str]:
    return [item.symbol for item in times[cut_id]]
