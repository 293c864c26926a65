"""Transcripts of a teacher in the place of a person's: pseudo-labels.

Several processes share the work without talking: each makes the shards that are its
own and counts each in a file of its own, and whoever finds all of them at its end puts
the counts together.  Killed at any time and started again, in any number, they redo at
most the shards that were being written.
"""

import dataclasses
import functools
import gzip
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Protocol

from lhotse.cut import Cut
from lhotse.supervision import SupervisionSegment
from torch import Tensor

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.distributed import World
from icefall_kd.core.files import Pathlike, move_file, write_atomically
from icefall_kd.data.cuts import check_cuts
from icefall_kd.data.normalise import normalise_text
from icefall_kd.data.shar import fields_dir
from icefall_kd.data.tokens import Tokenizer, UnknownLetters
from icefall_kd.fields.extract import SINGLE_PROCESS
from icefall_kd.fields.format import (
    cuts_path,
    field_dir,
    list_shar,
    recording_path,
    shard_ids,
)
from icefall_kd.fields.run_teachers import load_shar_wave
from icefall_kd.fields.shards import Shard
from icefall_kd.fields.survey import find_fields
from icefall_kd.pseudo.progress import LabelProgress, labelled_path, step_of

MAX_SECONDS = 30.0  # that Whisper hears at once
_UNKNOWN = "unknown tokens"


class Transcriber(Protocol):
    """Reads waves; see :class:`icefall_kd.teachers.whisper_text.WhisperText`."""

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the transcripts."""
        ...

    def transcribe(self, waves: Sequence[Tensor]) -> list[Any]:
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


@dataclasses.dataclass(frozen=True)
class TranscriptFilter:
    """Spells what was heard, and says whether it is taken.

    Attributes:
      limits:    what a transcript must be.
      language, case, numbers: of the spelling, see
        :func:`icefall_kd.data.normalise.normalise_text`.
      tokenizer: of the student, which must know every token; None does not ask.
    """

    limits: Limits
    language: str = "en"
    case: str = "upper"
    numbers: str = "spoken"
    tokenizer: Optional[Tokenizer] = None

    @functools.cached_property
    def letters(self) -> UnknownLetters:
        """Counts the letters that the tokenizer does not know."""
        return UnknownLetters(self.tokenizer)

    def identity(self) -> dict[str, Any]:
        """Return what identifies its transcripts.

        Earlier versions wrote neither the defaults nor ``numbers``: they read all
        numbers digit by digit, so that their transcripts are not taken for these.
        """
        identity: dict[str, Any] = dataclasses.asdict(self.limits)
        identity["numbers"] = self.numbers
        if self.language != "en":
            identity["language"] = self.language
        if self.case != "upper":
            identity["case"] = self.case
        if self.tokenizer is not None:
            identity["bpe_model"] = self.tokenizer.sha256
        return identity

    def spell(self, text: str) -> str:
        """Return what was heard as the student shall write it."""
        return normalise_text(text, self.language, self.case, self.numbers)

    def verdict(self, text: str, confidence: float, duration: float) -> str:
        """Return "labelled", or why the spelled ``text`` is not taken."""
        verdict = self.limits.verdict(text, confidence, duration)
        if verdict == "labelled" and self.tokenizer is not None:
            if self.tokenizer.unk_id in self.letters.add(text):
                return _UNKNOWN
        return verdict


@dataclasses.dataclass(frozen=True)
class PseudoLabelSummary:
    """What there is of an output.

    Attributes:
      counts:  number of cuts, in the shards that are there, by what became of them.
      missing: shards that others have yet to make; 0 says that the output is complete.
      confidences: number of transcripts, taken or not, by the lower end of the step of
        0.1 nats that their confidence is in.
    """

    counts: Counter
    missing: int
    confidences: Counter = dataclasses.field(default_factory=Counter)


class Seconds:
    """Counts the seconds of audio of a process's shards that are transcribed."""

    def __init__(
        self,
        shar_dir: Path,
        shards: Sequence[str],
        progress: Optional[Callable[[float, float], None]],
    ) -> None:
        self._progress, self._done, self._total = progress, 0.0, 0.0
        if progress is not None:
            for shard in shards:
                lines = Shard(cuts_path(shar_dir, shard), {}).lines()
                durations = (line["duration"] for line in lines)
                self._total += sum(d for d in durations if d <= MAX_SECONDS)

    def add(self, seconds: float) -> None:
        """Count the audio of a batch."""
        self._done += seconds
        if self._progress is not None:
            self._progress(self._done, self._total)


def pseudo_label(
    shar_dir: Pathlike,
    output: Pathlike,
    reader: Transcriber,
    *,
    batch_size: int = 8,
    min_confidence: float = -0.7,
    max_words_per_second: float = 6.0,
    language: str = "en",
    case: str = "upper",
    numbers: str = "spoken",
    tokenizer: Optional[Tokenizer] = None,
    world: World = SINGLE_PROCESS,
    progress: Optional[Callable[[float, float], None]] = None,
) -> PseudoLabelSummary:
    """Write a Shar folder of the same cuts, with transcripts by ``reader``.

    Everything but the cuts is a link to the input's.  A shard of cuts that is there
    already is kept.

    Args:
      min_confidence: least mean log-probability of a transcript's tokens, nats.
      language, case, numbers: of the spelling, see
        :func:`icefall_kd.data.normalise.normalise_text`.
      tokenizer: a transcript with tokens that it does not know is not taken.
      world: processes that share the shards: each takes every ``world.size``-th.
      progress: called with the seconds of audio that this process has transcribed, and
        those of all its shards, after every batch.
    Raises:
      FileNotFoundError: if ``shar_dir`` is no Shar folder.
      ValueError: if ``output`` holds transcripts made otherwise, or there is no such
        case, or no such style of numbers in the language.
    """
    shar_dir, output = Path(shar_dir), Path(output)
    limits = Limits(min_confidence, max_words_per_second)
    judge = TranscriptFilter(limits, language, case, numbers, tokenizer)
    judge.spell("")  # refuses a case or a style before a folder is made
    every = shard_ids(shar_dir)
    names = {labelled_path(output, shard).name for shard in every}
    stale = sorted({p.name for p in output.glob("cuts.*.jsonl.gz")} - names)
    if stale:
        raise ValueError(
            f"{output} holds {', '.join(stale[:3])}, of which {shar_dir} has no audio: "
            "it is of another set; delete it, or choose another --output"
        )
    tally = LabelProgress(
        shar_dir,
        output,
        {"of": shar_dir.name, "reader": reader.fingerprint(), **judge.identity()},
    )
    own = every[world.rank :: world.size]
    check_cuts((_source(shar_dir, shard) for shard in own), str(shar_dir))
    todo = tally.begin(own)
    logging.info("%s: %d of %d shards to transcribe", shar_dir, len(todo), len(every))
    seconds = Seconds(shar_dir, todo, progress)
    for shard in todo:
        made = _label_shard(shar_dir, output, shard, reader, judge, batch_size, seconds)
        tally.add(shard, *made)
    if tokenizer is not None and judge.letters.unknown:
        logging.info("%s: without a transcript: %s", output, judge.letters.describe())
    return _finish(shar_dir, output, every, tally)


def _finish(
    shar_dir: Path, output: Path, every: Sequence[str], tally: LabelProgress
) -> PseudoLabelSummary:
    """Complete the output if all its shards are whole, whoever made them."""
    verdicts, steps = tally.whole()
    counts = {shard: verdicts[shard] for shard in every if shard in verdicts}
    confidences = {shard: steps[shard] for shard in counts}
    report = PseudoLabelSummary(
        sum((Counter(c) for c in counts.values()), Counter()),
        len(every) - len(counts),
        sum((Counter(c) for c in confidences.values()), Counter()),
    )
    if not report.missing:
        _link_the_rest(shar_dir, output)
        tally.complete(counts, confidences)
        _warn_of_unknown(output, report.counts)
    return report


def _warn_of_unknown(output: Path, counts: Counter) -> None:
    """Say so when the spelling cannot be that of the BPE model."""
    taken = counts["labelled"] + counts[_UNKNOWN]
    if 2 * counts[_UNKNOWN] > taken:
        logging.warning(
            "%s: %d of %d transcripts have tokens that the BPE model does not know, "
            "and were not taken: it learnt another spelling.  Give --case and "
            "--language as the texts of --bpe-model are written, and another --output",
            output,
            counts[_UNKNOWN],
            taken,
        )


def _label_shard(
    shar_dir: Path,
    output: Path,
    shard: str,
    reader: Transcriber,
    judge: TranscriptFilter,
    batch_size: int,
    seconds: Seconds,
) -> tuple[Counter, Counter]:
    """Write one shard of cuts; return its verdicts and its confidences."""
    source = _source(shar_dir, shard)
    cuts = (cut for _, cut in source.read())
    said = dict(_transcripts(cuts, reader, batch_size, seconds))
    counts, confidences = Counter(), Counter()  # type: Counter, Counter
    path = labelled_path(output, shard)
    written = fields_dir(output) / path.name  # lhotse may be reading the output
    with write_atomically(written) as aside:
        with gzip.open(aside, "wt", encoding="utf-8") as out:
            for line in source.lines():
                heard = said.get(line["id"])
                if heard is None:
                    verdict = "too long"
                else:
                    confidences[step_of(heard.confidence)] += 1
                    text = judge.spell(heard.text)
                    verdict = judge.verdict(text, heard.confidence, line["duration"])
                counts[verdict] += 1
                line["supervisions"] = []  # a person's, too
                if verdict == "labelled":
                    line["supervisions"] = [_supervision(line, text, heard.confidence)]
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
    output.mkdir(parents=True, exist_ok=True)
    move_file(written, path)
    return counts, confidences


def _source(shar_dir: Path, shard: str) -> Shard:
    return Shard(
        cuts_path(shar_dir, shard), {"recording": recording_path(shar_dir, shard)}
    )


def _transcripts(
    cuts: Iterator[Cut], reader: Transcriber, batch_size: int, seconds: Seconds
) -> Iterator[tuple[str, Any]]:
    """Yield (cut id, transcript) of the cuts that are not too long."""
    fit = [(cut.id, load_shar_wave(cut)) for cut in cuts if cut.duration <= MAX_SECONDS]
    fit.sort(key=lambda pair: len(pair[1]))  # a batch is decoded as long as its longest
    for k in range(0, len(fit), batch_size):
        names, waves = zip(*fit[k : k + batch_size])
        yield from zip(names, reader.transcribe(waves))
        seconds.add(sum(map(len, waves)) / SAMPLE_RATE)


def _supervision(line: dict[str, Any], text: str, confidence: float) -> dict[str, Any]:
    return SupervisionSegment(
        id=line["id"],
        recording_id=line["recording"]["id"],
        start=0.0,
        duration=line["duration"],
        text=text,
        custom={"confidence": round(confidence, 4)},
    ).to_dict()


def _link_the_rest(shar_dir: Path, output: Path) -> None:
    """Link what is not the cuts, by a relative path where both have one root.

    A field that is unfinished is left out.
    """
    linked = 0
    links = {
        output / path.name: path
        for path in list_shar(shar_dir)
        if not path.name.startswith((".", "cuts."))
    }
    for name, files in find_fields(shar_dir).items():
        if files.described and files.info is None:
            logging.warning(
                "%s: field '%s' of %s is unfinished, and was not linked",
                output,
                name,
                shar_dir,
            )
            for path in files.tars.values():
                links.pop(output / path.name, None)
        elif files.info is not None:
            about = [files.info, *files.states.values(), files.codec]
            links.update({field_dir(output, name) / p.name: p for p in about if p})
    for link, path in links.items():
        if link.exists():
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(path, link.parent)
        try:
            link.symlink_to(target)
        except FileExistsError:
            # Another process was faster; any other link leads nowhere.
            if os.readlink(link) != target:
                raise FileExistsError(
                    f"{link} is a link to what is not there; delete it, and run again"
                ) from None
        linked += 1
    logging.info("%s: %d files are links to %s", output, linked, shar_dir)
