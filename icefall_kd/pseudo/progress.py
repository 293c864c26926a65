"""What became of the cuts of each shard that a teacher transcribes, file by file.

Beside the counts of verdicts a file has how many transcripts have which confidence: a
mean log-probability of its tokens, in steps of 0.1 nats.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from icefall_kd.core.files import read_json, remove_stale_temporaries, write_json
from icefall_kd.data.shar import fields_dir
from icefall_kd.fields.format import cuts_path, fingerprint_differences, list_shar
from icefall_kd.fields.join import compare_keys, read_keys

NOTE = "pseudo_labels.json"
PART = "pseudo_labels-"
STEPS = 20  # of 0.1 nats; the last one has all below
Counts = dict[str, dict[str, int]]  # shard -> what -> cuts


class LabelProgress:
    """What became of the cuts of each shard of an output, with what identifies it.

    While shards are missing, ``pseudo_labels-<shard>.json`` says that one is whole;
    ``pseudo_labels.json`` has all when it is complete.  Both are in
    ``<output>.fields``, see :mod:`icefall_kd.fields.format`.  Earlier versions kept in
    the latter what they had done so far, which holds too.

    Raises:
      ValueError: if the output holds transcripts that another identity made.
    """

    def __init__(self, shar_dir: Path, output: Path, identity: dict[str, Any]) -> None:
        self._shar_dir = shar_dir
        self._output = output
        self._identity = identity
        self._notes = fields_dir(output)
        if output.is_dir():
            list_shar(output)  # moves what an earlier version noted there
        self._joined: set[str] = set()  # shards that were found to be of these cuts
        self.whole()  # refuses before anything is written

    def whole(self) -> tuple[Counts, Counts]:
        """Return verdicts and confidences of the shards that are whole."""
        found: dict[str, tuple[dict[str, int], dict[str, int]]] = {}
        # Read before the note: who completes that deletes these after it.
        for path in self._notes.glob(f"{PART}*.json"):
            with contextlib.suppress(FileNotFoundError):
                said = read_json(path)
                # What a note that was deleted identified does not count.
                if _without_counts(said) == self._identity:
                    shard = path.stem[len(PART) :]
                    found[shard] = said["counts"], said.get("confidences", {})
        note = self._note()
        for shard, counts in note.get("counts", {}).items():
            confidences = note.get("confidences", {}).get(shard, {})
            found.setdefault(shard, (counts, confidences))
        found = {shard: both for shard, both in found.items() if self._joins(shard)}
        verdicts = {shard: both[0] for shard, both in found.items()}
        return verdicts, {shard: both[1] for shard, both in found.items()}

    def _joins(self, shard: str) -> bool:
        """Return whether a shard is there, and of the cuts that the input has now."""
        if shard not in self._joined:
            source = cuts_path(self._shar_dir, shard)
            labelled = labelled_path(self._output, shard)
            if not source.is_file() or not labelled.is_file():
                return False
            if compare_keys(read_keys(source), read_keys(labelled)):
                return False
            self._joined.add(shard)
        return True

    def begin(self, own: Sequence[str]) -> list[str]:
        """Return those of ``own`` that are to be made; sweep what was left of them."""
        whole, _ = self.whole()
        todo = [shard for shard in own if shard not in whole]
        # Nobody completes the note meanwhile: they would lack what is made here.
        if todo and not self._note():
            write_json(self._notes / NOTE, {**self._identity, "counts": {}})
        for shard in todo:
            remove_stale_temporaries(
                self._notes, labelled_path(self._output, shard).name
            )
            remove_stale_temporaries(self._notes, self._path(shard).name)
        return todo

    def add(self, shard: str, counts: Counter, confidences: Counter) -> None:
        """Note that a shard is whole."""
        made = {"counts": dict(counts), "confidences": dict(confidences)}
        write_json(self._path(shard), {**self._identity, **made})

    def complete(self, counts: Counts, confidences: Counts) -> None:
        """Put the counts of all shards together."""
        note = {**self._identity, "counts": counts, "confidences": confidences}
        if self._note() != note:
            write_json(self._notes / NOTE, note)
        remove_stale_temporaries(self._notes, NOTE)
        for shard in counts:
            self._path(shard).unlink(missing_ok=True)

    def _note(self) -> dict[str, Any]:
        """Return pseudo_labels.json; empty if there is none."""
        try:
            note = read_json(self._notes / NOTE)
        except FileNotFoundError:
            return {}
        if _without_counts(note) != self._identity:
            differences = fingerprint_differences(self._identity, _without_counts(note))
            raise ValueError(
                f"{self._output} holds transcripts made otherwise "
                f"({'; '.join(differences)}); delete it and {self._notes}, or choose "
                "another --output"
            )
        return note

    def _path(self, shard: str) -> Path:
        return self._notes / f"{PART}{shard}.json"


def _without_counts(note: dict[str, Any]) -> dict[str, Any]:
    made = ("counts", "confidences")
    return {name: value for name, value in note.items() if name not in made}


def step_of(confidence: float) -> str:
    """Return the lower end of the step that a confidence is in: "-0.3" for -0.25."""
    step = math.ceil(-10 * confidence) if math.isfinite(confidence) else STEPS
    return f"{-min(STEPS, max(1, step)) / 10:.1f}"


def histogram(confidences: Mapping[str, int]) -> str:
    """Return a line for each step of 0.1 nats: its cuts, and the share from it up."""
    total, above, lines = sum(confidences.values()), 0, []
    most = max(confidences.values(), default=1)
    for step in range(1, STEPS + 1):
        low = f"{-step / 10:.1f}"
        count = confidences.get(low, 0)
        above += count
        span = (
            f"{low} .. {(1 - step) / 10:.1f}"
            if step < STEPS
            else f"below {(1 - step) / 10:.1f}"
        )
        bar = "#" * -(-30 * count // most)
        lines.append(f"  {span:>12} {count:8,} {100 * above / total:5.1f} % {bar}")
        if above == total:
            break
    return "\n".join(lines)


def labelled_path(output: Path, shard: str) -> Path:
    return output / f"cuts.{shard}.jsonl.gz"
