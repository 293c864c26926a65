"""Training metrics: running means, log lines, metrics.jsonl and TensorBoard."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from tqdm import tqdm

from icefall_kd.core.distributed import World
from icefall_kd.core.files import Pathlike, as_path, explain_failed_write, write_text
from icefall_kd.distill.term import TermOutput
from icefall_kd.training.checkpoint import TrainState
from icefall_kd.training.config import TrainConfig

METRICS = "metrics.jsonl"
MIN_FALL = 0.05  # of a term's first value; a smaller fall is a plateau
PLATEAU_LINES = 3  # newest train lines whose mean is compared with the first line


class MetricsTracker:
    """Sums and counts by name.

    Tensors stay on their device until the sums are read, so that adding a batch does
    not wait for the accelerator.
    """

    def __init__(self, state: Optional[Mapping[str, Sequence[float]]] = None) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, float] = {}
        for name, (total, count) in (state or {}).items():
            self.add(name, total, count)

    def add(self, name: str, total: Any, count: float = 1.0) -> None:
        """Add ``total``, a number or a scalar tensor, summed over ``count`` items."""
        if isinstance(total, torch.Tensor):
            total = total.detach().double()
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._counts[name] = self._counts.get(name, 0.0) + count

    def add_terms(self, outputs: Mapping[str, TermOutput], num_cuts: int) -> None:
        """Add the terms of a batch of ``num_cuts`` cuts.

        Each term adds "<term>" in nats per item, its extras as "<term>.<extra>", and
        "<term>.skipped", the share of cuts that it skipped.
        """
        for name, output in outputs.items():
            self.add(name, output.sum, output.count)
            for extra, (total, count) in output.extras.items():
                self.add(f"{name}.{extra}", total, count)
            skipped = sum(map(len, output.skipped.values()))
            self.add(f"{name}.skipped", skipped, num_cuts)

    def state_dict(self) -> dict[str, list[float]]:
        """Return {name: [sum, count]} as plain numbers."""
        return {k: [float(v), float(self._counts[k])] for k, v in self._sums.items()}

    def means(self, world: World) -> dict[str, float]:
        """Return the mean over all processes of each name with a count above 0.

        Every process must call it; their names may differ.
        """
        merged = MetricsTracker()
        for state in world.gather(self.state_dict()):
            for name, (total, count) in state.items():
                merged.add(name, total, count)
        return {k: s / c for k, (s, c) in merged.state_dict().items() if c}


def format_means(means: Mapping[str, float]) -> str:
    """Return ``name=value`` pairs; "<term>.skipped" only if above 0."""
    return " ".join(
        f"{name}={value:.4g}"
        for name, value in means.items()
        if value or not name.endswith(".skipped")
    )


def format_time(seconds: float) -> str:
    """Return h:mm:ss.

    >>> format_time(3725)
    '1:02:05'
    """
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


class MetricsWriter:
    """Writes metrics as JSON lines and, optionally, TensorBoard events."""

    def __init__(
        self,
        exp_dir: Path,
        step: int,
        epochs: int,
        tensorboard: bool,
        validating: bool = False,
    ) -> None:
        """Open the metrics in ``exp_dir`` and remove lines after the given progress.

        Args:
          step: updates in the checkpoint that the run resumes from.
          epochs: finished epochs in it.
          tensorboard: also write events to ``exp_dir/tensorboard``.
          validating: True if the next epoch is trained, but not yet validated.
        """
        self.path = exp_dir / METRICS
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [x for x in lines if _is_before(x, step, epochs, validating)]
            write_text(self.path, "".join(f"{line}\n" for line in kept))
        self.board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            folder = exp_dir / "tensorboard"
            self.board = SummaryWriter(str(folder), purge_step=step + 1)

    def write(
        self, kind: str, step: int, epoch: int, values: Mapping[str, float]
    ) -> None:
        """Append one line; ``kind`` is "train", "epoch" or "dev"."""
        line = {"kind": kind, "step": step, "epoch": epoch, **values}
        with explain_failed_write(self.path, "make room and start again"):
            with open(self.path, "a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self.board is not None:
            self.board.close()


def _is_before(line: str, step: int, epochs: int, validating: bool) -> bool:
    """Return True for a complete line that was written before the given progress."""
    try:
        values = json.loads(line)
        # A kill may leave the "epoch" line without the checkpoint of that epoch.
        last = epochs + (validating and values["kind"] == "epoch")
        is_early = values["kind"] == "train" or values["epoch"] <= last
        return values["step"] <= step and is_early
    except (json.JSONDecodeError, KeyError):
        return False


def read_metrics(path: Pathlike) -> tuple[Mapping[str, Any], ...]:
    """Return the lines of a metrics.jsonl.

    A killed run may leave an incomplete last line, which is left out.

    Raises:
      ValueError: if any other line is not a line of metrics.
    """
    lines = as_path(path).read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            values["kind"], values["step"], values["epoch"]
            found.append(values)
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            if number < len(lines):
                raise ValueError(
                    f"{path}:{number}: not a line of metrics; delete this line"
                ) from e
    return tuple(found)


def plateau_warnings(
    path: Path, fields: Mapping[str, Sequence[str]], step: int
) -> Iterator[str]:
    """Yield a warning for each teacher's metric that fell by less than 5 %.

    The total loss falls because of the transcripts.  It does not show a teacher of
    another language, a wrong layer or targets of other audio.

    Args:
      path: metrics.jsonl of the run.
      fields: name of a metric -> fields that its term reads; () if it has no teacher.
      step: current update, for the message.
    """
    lines = [x for x in read_metrics(path) if x["kind"] == "train"]
    for name, read in fields.items():
        values = [line[name] for line in lines if name in line]
        if not read or len(values) <= PLATEAU_LINES or values[0] <= 0:
            continue
        first, last = values[0], sum(values[-PLATEAU_LINES:]) / PLATEAU_LINES
        if last > first * (1 - MIN_FALL):
            yield (
                f"term '{name}' is {last:.4g} after {step} updates, from {first:.4g}: "
                f"it fell by less than {100 * MIN_FALL:.0f} %, so the student learns "
                f"little from {', '.join(read)}. Check the teacher's language and "
                "layer, its frames (bin.fields plot), the term's weight and the "
                "learning rate."
            )


class Reporter:
    """Collects the metrics of all processes; rank 0 writes them.

    Attributes:
      metrics: sums of this process since the last progress line; "speed" is seconds
        of audio over all processes per second of wall time.  The lines also have
        "hours", the audio since the start of the run.
    """

    def __init__(
        self, config: TrainConfig, world: World, seconds_per_epoch: float
    ) -> None:
        """Prepare the reports of a run.

        Args:
          seconds_per_epoch: approximate audio in an epoch in seconds; 0 if unknown.
        """
        self.config, self.world = config, world
        self.seconds_per_epoch = seconds_per_epoch
        self.metrics = MetricsTracker()
        self._writer: Optional[MetricsWriter] = None
        self._fields: Mapping[str, Sequence[str]] = {}
        self._last_step = 0

    def open(self, state: TrainState, fields: Mapping[str, Sequence[str]]) -> None:
        """Open the files to continue after ``state``.

        Args:
          fields: see :func:`plateau_warnings`.
        """
        self._fields, self._last_step = fields, state.step
        if self.world.is_main:
            self._writer = MetricsWriter(
                Path(self.config.exp_dir),
                state.step,
                state.epoch,
                self.config.tensorboard,
                state.validating,
            )

    def close(self) -> None:
        """Flush the files."""
        if self._writer is not None:
            self._writer.close()

    def log(self, message: str) -> None:
        """Log a line on rank 0, with file and line of the caller."""
        if self.world.is_main:
            # Before Python 3.11, logging.info would count itself as a caller.
            logging.getLogger().info("%s", message, stacklevel=2)

    def open_bar(self, state: TrainState) -> tqdm:
        """Return a progress bar of the epoch's audio, shown in a terminal by rank 0."""
        total = self.seconds_per_epoch
        return tqdm(
            desc=f"epoch {state.epoch + 1}/{self.config.num_epochs}",
            total=round(total) or None,
            initial=round(state.audio - state.epoch * total) if total else 0,
            unit="s",
            disable=not (self.world.is_main and sys.stderr.isatty()),
        )

    def report_progress(self, state: TrainState, lr: float) -> None:
        """Write the means since the last call, with the remaining time.

        The remaining time is computed from the speed since the last call, because the
        start of a run is slow.  Every process must call it.
        """
        means = self.metrics.means(self.world)
        self.metrics = MetricsTracker()
        means["lr"] = lr
        line = format_means({k: v for k, v in means.items() if k != "speed"})
        speed, steps = means.get("speed"), f"{state.step}"
        if speed:
            line += f" speed={speed:.4g} s of audio per second"
        total = self.seconds_per_epoch * self.config.num_epochs
        if speed and total:
            means["eta"] = max(0.0, total - state.audio) / speed
            line += f" ETA {format_time(means['eta'])}"
            steps += f" of about {round(state.step * total / state.audio)}"
        means["hours"] = state.audio / 3600
        epoch = state.epoch + 1
        self.log(f"epoch {epoch}/{self.config.num_epochs} step {steps}: {line}")
        self._write("train", state.step, epoch, means)
        is_due = self._last_step < self.config.stall_steps <= state.step
        self._last_step = state.step
        if is_due and self._writer is not None:
            path = self._writer.path
            for warning in plateau_warnings(path, self._fields, state.step):
                logging.warning("%s", warning)

    def report_skipped(self, state: TrainState, shares: Mapping[str, float]) -> None:
        """Write the shares of cuts that the current epoch skipped.

        Args:
          shares: see :meth:`icefall_kd.training.skipped.SkippedCuts.end_epoch`.
        """
        texts = [f"{k} {100 * v:.1f} %" for k, v in shares.items() if k != "cuts"]
        self.log(
            f"epoch {state.epoch + 1}: {shares['cuts']:.0f} cuts, "
            + (", ".join(texts) or "none skipped by any term")
        )
        self._write("epoch", state.step, state.epoch + 1, shares)

    def report_validation(self, state: TrainState, means: Mapping[str, float]) -> None:
        """Write the means over the dev set after ``state.epoch`` epochs."""
        self.log(f"epoch {state.epoch} dev: {format_means(means)}")
        self._write("dev", state.step, state.epoch, means)

    def _write(
        self, kind: str, step: int, epoch: int, values: Mapping[str, float]
    ) -> None:
        if self._writer is not None:
            self._writer.write(kind, step, epoch, values)
