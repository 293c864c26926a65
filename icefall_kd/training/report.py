"""Whether a teacher teaches: a term on its fields whose loss does not fall.

The total loss falls all the same, by the transcripts, and hides a teacher of another
language, an unfit layer, or targets that are not those of the audio.

What a run says while it runs: log lines, metrics.jsonl, TensorBoard.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Optional

from icefall_kd.core.distributed import World
from icefall_kd.training.config import TrainConfig
from icefall_kd.training.metrics import (
    MetricsTracker,
    MetricsWriter,
    format_means,
    format_time,
    read_metrics,
)
from icefall_kd.training.state import TrainState

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


class Reporter:
    """Collects the metrics of all processes; rank 0 writes.

    Attributes:
      metrics: sums of this process since the last line of progress; "speed" is s of
        audio of all processes for each s of wall time.
    """

    def __init__(
        self, config: TrainConfig, world: World, seconds_per_epoch: float
    ) -> None:
        self.config, self.world = config, world
        self.total = seconds_per_epoch * config.num_epochs  # s of audio in the run
        self.metrics = MetricsTracker()
        self._writer: Optional[MetricsWriter] = None
        self._stall: Optional[StallWatch] = None

    def open(self, state: TrainState, fields: Mapping[str, Sequence[str]]) -> None:
        """Begin to write, behind what was written up to ``state``.

        Args:
          fields: name of each term -> the fields it reads.
        """
        if self.world.is_main:
            self._writer = MetricsWriter(
                Path(self.config.exp_dir),
                state.step,
                state.epoch,
                self.config.tensorboard,
                state.validating,
            )
            steps = self.config.stall_steps
            self._stall = StallWatch(self._writer.path, fields, steps, state.step)

    def close(self) -> None:
        """Flush what is not written yet."""
        if self._writer is not None:
            self._writer.close()

    def log(self, message: str) -> None:
        """Write a line to the log."""
        if self.world.is_main:
            logging.info("%s", message)

    def progress(self, state: TrainState, lr: float) -> None:
        """Write the means since the last call, with the time that is left.

        The time follows from the speed since the last call: an average over the run
        would keep what was slow at its start.  Every process must call it.
        """
        means = self.metrics.reduced().means()
        self.metrics = MetricsTracker()
        means["lr"] = lr
        line = format_means({k: v for k, v in means.items() if k != "speed"})
        speed, steps = means.get("speed"), f"{state.step}"
        if speed:
            line += f" speed={speed:.4g} s of audio a second"
        if speed and self.total:
            means["eta"] = max(0.0, self.total - state.audio) / speed
            line += f" ETA {format_time(means['eta'])}"
            steps += f" of about {round(state.step * self.total / state.audio)}"
        epoch = state.epoch + 1
        self.log(f"epoch {epoch}/{self.config.num_epochs} step {steps}: {line}")
        if self._writer is not None:
            self._writer.write("train", state.step, epoch, means)
        if self._stall is not None:
            for warning in self._stall.look(state.step):
                logging.warning("%s", warning)

    def skipped(self, state: TrainState, shares: dict[str, float]) -> None:
        """Write the shares of the cuts that the epoch after ``state`` skipped."""
        texts = [f"{k} {100 * v:.1f} %" for k, v in shares.items() if k != "cuts"]
        self.log(
            f"epoch {state.epoch + 1}: {shares['cuts']:.0f} cuts, "
            + (", ".join(texts) or "none skipped by any term")
        )
        if self._writer is not None:
            self._writer.write("epoch", state.step, state.epoch + 1, shares)

    def validation(self, state: TrainState, means: dict[str, float]) -> None:
        """Write the means over the dev set after ``state.epoch`` epochs."""
        self.log(f"epoch {state.epoch} dev: {format_means(means)}")
        if self._writer is not None:
            self._writer.write("dev", state.step, state.epoch, means)
