"""Whether a teacher teaches: a term on its fields whose loss does not fall.

The total loss falls all the same, by the transcripts, and hides a teacher of another
language, an unfit layer, or targets that are not those of the audio.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from icefall_kd.training.metrics import read_metrics

LEAST_FALL = 0.05  # of what the term began with
LAST = 3  # lines of progress whose mean is compared with the first


class StallWatch:
    """Compares, once in a run, what the terms began with and what has become of it."""

    def __init__(
        self, path: Path, fields: Mapping[str, Sequence[str]], steps: int, done: int
    ) -> None:
        """Watch the file of metrics at ``path``.

        Args:
          fields: name of each term -> the fields it reads; of a teacher, if any.
          steps:  updates after which it is time; 0 never is.
          done:   updates that an earlier sitting of the run has made.
        """
        self.path, self.fields, self.steps, self._seen = path, fields, steps, done

    def look(self, step: int) -> list[str]:
        """Return what to warn of behind ``step`` updates, a text a term."""
        seen, self._seen = self._seen, step
        if not seen < self.steps <= step:
            return []
        lines = [x for x in read_metrics(self.path) if x["kind"] == "train"]
        return list(self._warnings(lines, step))

    def _warnings(self, lines: list[Mapping], step: int) -> Iterator[str]:
        for term, fields in self.fields.items():
            values = [line[term] for line in lines if term in line]
            if not fields or len(values) <= LAST or values[0] <= 0:
                continue
            first, last = values[0], sum(values[-LAST:]) / LAST
            if last > first * (1 - LEAST_FALL):
                yield (
                    f"term '{term}' is at {last:.4g} after {step} updates, from "
                    f"{first:.4g}: it should have fallen by {100 * LEAST_FALL:.0f} % "
                    f"at least, the student learns little from {', '.join(fields)}. "
                    "Is it a teacher of this language, is the layer fit, are its "
                    "frames those of this audio (bin.fields plot shows them)? Or are "
                    "weight or learning rate too small?"
                )
