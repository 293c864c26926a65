"""Transcribe a Shar folder with a teacher, and keep the transcripts that pass a filter.

Several processes share the shards without communication.  Each process writes the
counts of its shards to files; the last process merges them.  After a kill, any number
of processes can continue; they repeat only the shards that were being written.
"""

import dataclasses
import functools
import gzip
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Optional, Protocol

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
from icefall_kd.fields.extract import SINGLE_PROCESS, Progress
from icefall_kd.fields.format import cuts_path, field_dir, list_shar, shard_ids
from icefall_kd.fields.integrity import find_fields
from icefall_kd.fields.run_teachers import audio_shard, load_shar_wave
from icefall_kd.fields.shards import Shard
from icefall_kd.pseudo.progress import (
    LabelCounts,
    LabelProgress,
    confidence_step,
    labelled_path,
)

MAX_SECONDS = 30.0  # longest cut that Whisper transcribes
LABELLED, UNKNOWN_TOKENS = "labelled", "unknown tokens"  # verdicts


class Transcriber(Protocol):
    """Interface of a transcribing teacher, for example
    :class:`icefall_kd.teachers.whisper_ct2.WhisperText`.
    """

    def fingerprint(self) -> dict[str, Any]:
        """Return the model and the options that determine the transcripts."""
        ...

    def transcribe(self, waves: Sequence[Tensor]) -> list[Any]:
        """Return an object with ``text`` and ``confidence`` for each wave.

        Args:
          waves: samples of each utterance, (S,) float32, 16 kHz.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TranscriptFilter:
    """Normalise transcripts, and decide which become pseudo-labels.

    Attributes:
      min_confidence: minimum mean log-probability of a transcript's tokens in nats.
      max_words_per_second: maximum number of words per second of audio.
      language, case, numbers: see :func:`icefall_kd.data.normalise.normalise_text`.
      tokenizer: the student's tokenizer; transcripts with ``<unk>`` are rejected.  None
        skips this check.
    """

    min_confidence: float = -0.7
    max_words_per_second: float = 6.0
    language: str = "en"
    case: str = "upper"
    numbers: str = "spoken"
    tokenizer: Optional[Tokenizer] = None

    @functools.cached_property
    def letters(self) -> UnknownLetters:
        """Counter of the letters that the tokenizer lacks."""
        return UnknownLetters(self.tokenizer)

    def identity(self) -> dict[str, Any]:
        """Return the options that determine the pseudo-labels.

        Default values of language and case are omitted, as in earlier versions.  These
        versions had no ``numbers``: they wrote all numbers digit by digit, so their
        transcripts must not be reused.
        """
        identity: dict[str, Any] = {
            "min_confidence": self.min_confidence,
            "max_words_per_second": self.max_words_per_second,
            "numbers": self.numbers,
        }
        if self.language != "en":
            identity["language"] = self.language
        if self.case != "upper":
            identity["case"] = self.case
        if self.tokenizer is not None:
            identity["bpe_model"] = self.tokenizer.sha256
        return identity

    def normalise(self, text: str) -> str:
        """Return a transcript normalised like the training texts."""
        return normalise_text(text, self.language, self.case, self.numbers)

    def verdict(self, text: str, confidence: float, duration: float) -> str:
        """Return "labelled", or the reason for rejecting a normalised transcript.

        Args:
          confidence: mean log-probability of the tokens in nats.
          duration: duration of the audio in seconds.
        """
        if not text:
            return "empty"
        if confidence < self.min_confidence:
            return "uncertain"
        if len(text.split()) > max(1.0, self.max_words_per_second * duration):
            return "too many words"
        if self.tokenizer is not None:
            if self.tokenizer.unk_id in self.letters.add(text):
                return UNKNOWN_TOKENS
        return LABELLED


@dataclasses.dataclass(frozen=True)
class PseudoLabelSummary:
    """Counts over all finished shards of an output.

    Attributes:
      counts: verdict -> number of cuts.
      missing: number of shards that other processes have not finished yet.
      confidences: lower end of a step of 0.1 nats -> number of transcripts, rejected
        ones included.
    """

    counts: Counter
    missing: int
    confidences: Counter = dataclasses.field(default_factory=Counter)


def pseudo_label(
    shar_dir: Pathlike,
    output: Pathlike,
    transcriber: Transcriber,
    transcript_filter: Optional[TranscriptFilter] = None,
    *,
    batch_size: int = 8,
    world: World = SINGLE_PROCESS,
    progress: Optional[Progress] = None,
) -> PseudoLabelSummary:
    """Write a Shar folder with the cuts of ``shar_dir`` and pseudo-labels.

    Audio and fields of the output are links to the input.  Finished shards are skipped.

    Args:
      shar_dir: Shar folder to transcribe.
      output: new Shar folder.
      transcriber: teacher that transcribes the audio.
      transcript_filter: decides which transcripts are kept; None uses the defaults.
      batch_size: number of utterances per call of the transcriber.
      world: processes that share the shards; each takes every ``world.size``-th shard.
      progress: function called after each batch with (seconds of audio done, seconds in
        total) of this process.
    Raises:
      FileNotFoundError: if ``shar_dir`` is not a Shar folder.
      ValueError: if ``output`` has transcripts of another teacher, of other options or
        of other cuts; if the case is unknown, or the style of numbers is not available
        in the language.
    """
    shar_dir, output = Path(shar_dir), Path(output)
    transcript_filter = transcript_filter or TranscriptFilter()
    transcript_filter.normalise("")  # raises for invalid options
    shards = shard_ids(shar_dir)
    names = {labelled_path(output, shard).name for shard in shards}
    foreign = sorted({p.name for p in output.glob("cuts.*.jsonl.gz")} - names)
    if foreign:
        raise ValueError(
            f"{output} has {', '.join(foreign[:3])}, but {shar_dir} does not: the "
            "output is of another set. Delete it, or give another --output"
        )
    identity = {
        "of": shar_dir.name,
        "reader": transcriber.fingerprint(),
        **transcript_filter.identity(),
    }
    label_progress = LabelProgress(shar_dir, output, identity)
    own = shards[world.rank :: world.size]
    check_cuts((audio_shard(shar_dir, shard) for shard in own), str(shar_dir))
    todo = label_progress.start(own)
    logging.info("%s: %d of %d shards to transcribe", shar_dir, len(todo), len(shards))
    add_seconds = _count_seconds(shar_dir, todo, progress)
    for shard in todo:
        counts = _label_shard(
            audio_shard(shar_dir, shard),
            labelled_path(output, shard),
            transcriber,
            transcript_filter,
            batch_size,
            add_seconds,
        )
        label_progress.add(shard, counts)
    if transcript_filter.tokenizer is not None and transcript_filter.letters.unknown:
        logging.info(
            "%s: rejected transcripts: %s", output, transcript_filter.letters.describe()
        )
    return _finish(shar_dir, output, shards, label_progress)


def _count_seconds(
    shar_dir: Path, shards: Sequence[str], progress: Optional[Progress]
) -> Callable[[float], None]:
    """Return a function that adds the seconds of a batch and calls ``progress``."""
    if progress is None:
        return lambda seconds: None
    done, total = 0.0, 0.0
    for shard in shards:
        durations = (
            c["duration"] for c in Shard(cuts_path(shar_dir, shard), {}).lines()
        )
        total += sum(d for d in durations if d <= MAX_SECONDS)

    def add(seconds: float) -> None:
        nonlocal done
        done += seconds
        progress(done, total)

    return add


def _label_shard(
    source: Shard,
    target: Path,
    transcriber: Transcriber,
    transcript_filter: TranscriptFilter,
    batch_size: int,
    add_seconds: Callable[[float], None],
) -> LabelCounts:
    """Write one shard of cuts with pseudo-labels, and return its counts."""
    cuts = (cut for _, cut in source.read())
    transcripts = dict(_transcribe(cuts, transcriber, batch_size, add_seconds))
    verdicts, confidences = Counter(), Counter()  # type: Counter, Counter
    # The temporary file is not in the output folder, which Lhotse may be reading.
    staged = fields_dir(target.parent) / target.name
    with write_atomically(staged) as temporary:
        with gzip.open(temporary, "wt", encoding="utf-8") as f:
            for line in source.lines():
                line["supervisions"] = []
                found = transcripts.get(line["id"])
                if found is None:
                    verdict = "too long"
                else:
                    confidences[confidence_step(found.confidence)] += 1
                    text = transcript_filter.normalise(found.text)
                    verdict = transcript_filter.verdict(
                        text, found.confidence, line["duration"]
                    )
                    if verdict == LABELLED:
                        line["supervisions"] = [
                            _supervision(line, text, found.confidence)
                        ]
                verdicts[verdict] += 1
                f.write(json.dumps(line, ensure_ascii=False) + "\n")
    target.parent.mkdir(parents=True, exist_ok=True)
    move_file(staged, target)
    return LabelCounts(verdicts, confidences)


def _transcribe(
    cuts: Iterator[Cut],
    transcriber: Transcriber,
    batch_size: int,
    add_seconds: Callable[[float], None],
) -> Iterator[tuple[str, Any]]:
    """Yield (cut id, transcript) of each cut up to 30 s."""
    waves = [
        (cut.id, load_shar_wave(cut)) for cut in cuts if cut.duration <= MAX_SECONDS
    ]
    waves.sort(key=lambda pair: len(pair[1]))  # the longest one sets a batch's cost
    for k in range(0, len(waves), batch_size):
        ids, batch = zip(*waves[k : k + batch_size])
        yield from zip(ids, transcriber.transcribe(batch))
        add_seconds(sum(map(len, batch)) / SAMPLE_RATE)


def _supervision(line: dict[str, Any], text: str, confidence: float) -> dict[str, Any]:
    return SupervisionSegment(
        id=line["id"],
        recording_id=line["recording"]["id"],
        start=0.0,
        duration=line["duration"],
        text=text,
        custom={"confidence": round(confidence, 4)},
    ).to_dict()


def _finish(
    shar_dir: Path, output: Path, shards: Sequence[str], label_progress: LabelProgress
) -> PseudoLabelSummary:
    """Complete the output if all its shards are finished."""
    finished = label_progress.read_finished()
    counts = {shard: finished[shard] for shard in shards if shard in finished}
    verdicts, confidences = Counter(), Counter()  # type: Counter, Counter
    for shard_counts in counts.values():
        verdicts.update(shard_counts.verdicts)
        confidences.update(shard_counts.confidences)
    summary = PseudoLabelSummary(verdicts, len(shards) - len(counts), confidences)
    if not summary.missing:
        _link_other_files(shar_dir, output)
        label_progress.complete(counts)
        accepted = verdicts[LABELLED] + verdicts[UNKNOWN_TOKENS]
        if 2 * verdicts[UNKNOWN_TOKENS] > accepted:
            logging.warning(
                "%s: %d of %d transcripts were rejected, since the BPE model lacks "
                "their letters: it was trained on texts of another spelling. Give the "
                "--case and --language of these texts, and another --output",
                output,
                verdicts[UNKNOWN_TOKENS],
                accepted,
            )
    return summary


def _link_other_files(shar_dir: Path, output: Path) -> None:
    """Write relative links to the audio and the finished fields of the input."""
    links = {
        output / path.name: path
        for path in list_shar(shar_dir)
        if not path.name.startswith((".", "cuts."))
    }
    for name, files in find_fields(shar_dir).items():
        if files.is_ours and files.info is None:
            logging.warning(
                "%s: field '%s' of %s is unfinished and was not linked. Extract it, "
                "then run the same command again",
                output,
                name,
                shar_dir,
            )
            for path in files.tars.values():
                links.pop(output / path.name, None)
        elif files.info is not None:
            about = [files.info, *files.states.values(), files.codec]
            links.update({field_dir(output, name) / p.name: p for p in about if p})
    linked = 0
    for link, path in links.items():
        if link.exists():
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(path, link.parent)
        try:
            link.symlink_to(target)
        except FileExistsError:  # of another process, or a broken link
            if os.readlink(link) != target:
                raise FileExistsError(
                    f"{link} is a broken link. Delete it and run the same command again"
                ) from None
        linked += 1
    logging.info("%s: %d files are links to %s", output, linked, shar_dir)
