"""Store which shards of pseudo-labels are finished, with counts of their verdicts.

A confidence is the mean log-probability of a transcript's tokens in nats.  Confidences
are counted in steps of 0.1 nats.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from icefall_kd.core.files import read_json, remove_stale_temporaries, write_json
from icefall_kd.data.shar import fields_dir
from icefall_kd.fields.format import cuts_path, fingerprint_differences
from icefall_kd.fields.join import compare_keys, read_keys

TOTALS = "pseudo_labels.json"
PART = "pseudo_labels-"
STEPS = 20  # steps of 0.1 nats; the last one includes all lower confidences


class LabelCounts(NamedTuple):
    """Counts of one shard.

    Attributes:
      verdicts: verdict -> number of cuts.
      confidences: lower end of a step, for example "-0.3" -> number of transcripts.
    """

    verdicts: Mapping[str, int]
    confidences: Mapping[str, int]


class LabelProgress:
    """Finished shards of an output folder, with their counts.

    The counts are in JSON files in ``<output>.fields``.  While shards are missing, each
    finished shard has a file ``pseudo_labels-<shard>.json``.  When all are finished,
    ``pseudo_labels.json`` replaces these files.  Earlier versions also wrote the counts
    of unfinished outputs to ``pseudo_labels.json``; these are read too.

    Args:
      shar_dir: Shar folder with the audio.
      output: new Shar folder with pseudo-labels.
      identity: teacher and options; shards of another identity are not reused.
    Raises:
      ValueError: if the output has transcripts of another identity.
    """

    def __init__(self, shar_dir: Path, output: Path, identity: dict[str, Any]) -> None:
        self._shar_dir, self._output, self._identity = shar_dir, output, identity
        self._folder = fields_dir(output)
        self._current: set[str] = set()  # shards whose cuts are known to be unchanged
        if (output / TOTALS).is_file():
            raise ValueError(
                f"{output}: has the layout of an earlier version. Run 'mkdir -p "
                f"{self._folder} && mv {output}/pseudo_labels*.json {self._folder}'"
            )
        self._read_totals()  # raises for another identity

    def read_finished(self) -> dict[str, LabelCounts]:
        """Return the counts of the finished shards."""
        found: dict[str, LabelCounts] = {}
        # Read parts before totals: another process deletes parts after it has written
        # the totals.
        for path in self._folder.glob(f"{PART}*.json"):
            with contextlib.suppress(FileNotFoundError):
                part = read_json(path)
                if _identity_of(part) == self._identity:
                    shard = path.stem[len(PART) :]
                    found[shard] = LabelCounts(
                        part["counts"], part.get("confidences", {})
                    )
        totals = self._read_totals()
        for shard, verdicts in totals.get("counts", {}).items():
            confidences = totals.get("confidences", {}).get(shard, {})
            found.setdefault(shard, LabelCounts(verdicts, confidences))
        return {shard: c for shard, c in found.items() if self._is_current(shard)}

    def _is_current(self, shard: str) -> bool:
        """Return whether the output has a shard with the present cuts of the input."""
        if shard not in self._current:
            source = cuts_path(self._shar_dir, shard)
            labelled = labelled_path(self._output, shard)
            if not source.is_file() or not labelled.is_file():
                return False
            if compare_keys(read_keys(source), read_keys(labelled)):
                return False
            self._current.add(shard)
        return True

    def start(self, shards: Sequence[str]) -> list[str]:
        """Return the unfinished shards of ``shards``; remove their temporary files."""
        finished = self.read_finished()
        todo = [shard for shard in shards if shard not in finished]
        # Record the identity, so that a process with other options fails.  No other
        # process writes complete totals now, since the shards of ``todo`` are missing.
        if todo and not self._read_totals():
            write_json(self._folder / TOTALS, {**self._identity, "counts": {}})
        for shard in todo:
            for path in (labelled_path(self._output, shard), self._part_path(shard)):
                remove_stale_temporaries(self._folder, path.name)
        return todo

    def add(self, shard: str, counts: LabelCounts) -> None:
        """Write the counts of a finished shard."""
        values = {
            "counts": dict(counts.verdicts),
            "confidences": dict(counts.confidences),
        }
        write_json(self._part_path(shard), {**self._identity, **values})

    def complete(self, counts: Mapping[str, LabelCounts]) -> None:
        """Write the counts of all shards to one file, and delete the shards' files."""
        totals = {
            **self._identity,
            "counts": {shard: c.verdicts for shard, c in counts.items()},
            "confidences": {shard: c.confidences for shard, c in counts.items()},
        }
        if self._read_totals() != totals:
            write_json(self._folder / TOTALS, totals)
        remove_stale_temporaries(self._folder, TOTALS)
        for shard in counts:
            self._part_path(shard).unlink(missing_ok=True)

    def _read_totals(self) -> dict[str, Any]:
        """Return pseudo_labels.json; empty if it does not exist."""
        try:
            totals = read_json(self._folder / TOTALS)
        except FileNotFoundError:
            return {}
        identity = _identity_of(totals)
        if identity != self._identity:
            differences = fingerprint_differences(self._identity, identity)
            raise ValueError(
                f"{self._output} has transcripts of another teacher or options: "
                f"{'; '.join(differences)}. Delete it and {self._folder}, or give "
                "another --output"
            )
        return totals

    def _part_path(self, shard: str) -> Path:
        return self._folder / f"{PART}{shard}.json"


def _identity_of(note: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in note.items() if k not in ("counts", "confidences")}


def labelled_path(output: Path, shard: str) -> Path:
    """Return the file of a shard's cuts with pseudo-labels."""
    return output / f"cuts.{shard}.jsonl.gz"


def confidence_step(confidence: float) -> str:
    """Return the lower end of a confidence's step, for example "-0.3" for -0.25."""
    step = math.ceil(-10 * confidence) if math.isfinite(confidence) else STEPS
    return f"{-min(STEPS, max(1, step)) / 10:.1f}"


def format_histogram(confidences: Mapping[str, int]) -> str:
    """Return a text histogram, one line for each step.

    A line has the step, its number of cuts, and the share of cuts with at least this
    confidence.

    Args:
      confidences: see :class:`LabelCounts`; not empty.
    """
    total, most = sum(confidences.values()), max(confidences.values(), default=1)
    cumulative, lines = 0, []
    for step in range(1, STEPS + 1):
        low, high = f"{-step / 10:.1f}", f"{(1 - step) / 10:.1f}"
        count = confidences.get(low, 0)
        cumulative += count
        interval = f"{low} .. {high}" if step < STEPS else f"below {high}"
        share, bar = 100 * cumulative / total, "#" * -(-30 * count // most)
        lines.append(f"  {interval:>12} {count:8,} {share:5.1f} % {bar}")
        if cumulative == total:
            break
    return "\n".join(lines)
