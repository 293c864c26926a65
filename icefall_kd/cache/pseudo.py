"""Transcripts of a teacher in the place of a person's: pseudo-labels."""

import dataclasses
import gzip
import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, Protocol, Sequence, Tuple

from lhotse.cut import Cut
from lhotse.supervision import SupervisionSegment
from torch import Tensor
from tqdm import tqdm

from icefall_kd.cache.field import cuts_path, recording_path, shard_ids
from icefall_kd.cache.shards import Shard
from icefall_kd.cache.teach import load_wave
from icefall_kd.data.normalise import normalise
from icefall_kd.io import Pathlike, read_json, write_aside, write_json

MAX_SECONDS = 30.0  # that Whisper hears at once
_NOTE = "pseudo_labels.json"


class Transcriber(Protocol):
    """Reads waves; see :class:`icefall_kd.teachers.whisper_text.WhisperText`."""

    def fingerprint(self) -> Dict[str, Any]:
        """Return what identifies the transcripts."""
        ...

    def transcribe(self, waves: Sequence[Tensor]) -> List[Any]:
        """Return ``text`` and ``confidence`` of each wave."""
        ...


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a transcript must be to be taken."""

    min_confidence: float
    max_words_per_second: float

    def verdict(self, text: str, confidence: float, duration: float) -> str:
        """Return "labelled", or why not."""
        if not text:
            return "empty"
        if confidence < self.min_confidence:
            return "uncertain"
        if len(text.split()) > max(1.0, self.max_words_per_second * duration):
            return "too many words"
        return "labelled"


def pseudo_label(
    shar_dir: Pathlike,
    output: Pathlike,
    reader: Transcriber,
    *,
    batch_size: int = 8,
    min_confidence: float = -0.7,
    max_words_per_second: float = 6.0,
) -> Counter:
    """Write a Shar folder of the same cuts, with transcripts by ``reader``.

    Everything but the cuts is a link to the input's.  A shard of cuts that is there
    already is kept.

    Args:
      min_confidence: least mean log-probability of a transcript's tokens, nats.
    Returns:
      number of cuts by what became of them.
    Raises:
      FileNotFoundError: if ``shar_dir`` is no Shar folder.
      ValueError: if ``output`` holds transcripts made otherwise.
    """
    shar_dir, output = Path(shar_dir), Path(output)
    limits = Limits(min_confidence, max_words_per_second)
    note = {
        "of": shar_dir.name,
        "reader": reader.fingerprint(),
        **dataclasses.asdict(limits),
    }
    ids = shard_ids(shar_dir)
    output.mkdir(parents=True, exist_ok=True)
    if not (output / _NOTE).is_file():
        write_json(output / _NOTE, {**note, "counts": {}})
    counts_of = read_json(output / _NOTE)
    done: Dict[str, Dict[str, int]] = counts_of.pop("counts")
    if counts_of != note:
        raise ValueError(
            f"{output} holds transcripts made otherwise ({counts_of}); delete it, or "
            "choose another folder"
        )
    for shard in tqdm(ids, desc=f"transcripts of {shar_dir.name}", unit="shard"):
        if shard not in done:
            done[shard] = dict(
                _label_shard(shar_dir, output, shard, reader, limits, batch_size)
            )
            write_json(output / _NOTE, {**note, "counts": done})
    _link_the_rest(shar_dir, output)
    return sum((Counter(c) for c in done.values()), Counter())


def _label_shard(
    shar_dir: Path,
    output: Path,
    shard: str,
    reader: Transcriber,
    limits: Limits,
    batch_size: int,
) -> Counter:
    source = Shard(
        cuts_path(shar_dir, shard), {"recording": recording_path(shar_dir, shard)}
    )
    said = dict(_transcripts((c for _, c in source.read()), reader, batch_size))
    counts: Counter = Counter()
    with write_aside(output / f"cuts.{shard}.jsonl.gz") as aside:
        with gzip.open(aside, "wt", encoding="utf-8") as out:
            for line in source.lines():
                heard = said.get(line["id"])
                if heard is None:
                    verdict = "too long"
                else:
                    text = normalise(heard.text)
                    verdict = limits.verdict(text, heard.confidence, line["duration"])
                counts[verdict] += 1
                line["supervisions"] = []  # a person's, too
                if verdict == "labelled":
                    line["supervisions"] = [_supervision(line, text, heard.confidence)]
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
    return counts


def _transcripts(
    cuts: Iterator[Cut], reader: Transcriber, batch_size: int
) -> Iterator[Tuple[str, Any]]:
    """Yield (cut id, transcript) of the cuts that are not too long."""
    fit = [(cut.id, load_wave(cut)) for cut in cuts if cut.duration <= MAX_SECONDS]
    fit.sort(key=lambda pair: len(pair[1]))  # a batch is decoded as long as its longest
    for k in range(0, len(fit), batch_size):
        names, waves = zip(*fit[k : k + batch_size])
        yield from zip(names, reader.transcribe(waves))


def _supervision(line: Dict[str, Any], text: str, confidence: float) -> Dict[str, Any]:
    return SupervisionSegment(
        id=line["id"],
        recording_id=line["recording"]["id"],
        start=0.0,
        duration=line["duration"],
        text=text,
        custom={"confidence": round(confidence, 4)},
    ).to_dict()


def _link_the_rest(shar_dir: Path, output: Path) -> None:
    """Link what is not the cuts, by a relative path where both have one root."""
    linked = 0
    for path in sorted(shar_dir.iterdir()):
        target = output / path.name
        if path.name.startswith((".", "cuts.")) or target.exists():
            continue
        target.symlink_to(os.path.relpath(path, output))
        linked += 1
    logging.info("%s: %d files are links to %s", output, linked, shar_dir)
