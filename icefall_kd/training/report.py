"""What a run says while it runs: log lines, metrics.jsonl, TensorBoard."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from icefall_kd.training.config import TrainConfig
from icefall_kd.training.distributed import World
from icefall_kd.training.metrics import (
    MetricsTracker,
    MetricsWriter,
    format_means,
    format_time,
)
from icefall_kd.training.stall import StallWatch
from icefall_kd.training.state import TrainState


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
