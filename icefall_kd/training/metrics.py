"""Running sums of what training reports, and where they are written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import torch
from torch import distributed as dist

from icefall_kd.core.files import Pathlike, as_path, explain_failed_write, write_text
from icefall_kd.distill.term import TermOutput

METRICS = "metrics.jsonl"


class MetricsTracker:
    """Sums and counts by name; the mean of each is what gets logged.

    Tensors are added without reading them, so that an accelerator is not waited
    for at every batch.
    """

    def __init__(self, state: Optional[dict[str, list[float]]] = None) -> None:
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

    def state(self) -> dict[str, list[float]]:
        """Return {name: [sum, count]} in plain numbers."""
        return {k: [float(v), float(self._counts[k])] for k, v in self._sums.items()}

    def means(self) -> dict[str, float]:
        """Return the mean of each, in the order of first use; not of a count of 0."""
        return {k: s / c for k, (s, c) in self.state().items() if c}

    def reduced(self) -> "MetricsTracker":
        """Return the sums over all ranks; ranks may hold different names."""
        if not dist.is_initialized():
            return self
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, self.state())
        merged = MetricsTracker()
        for state in states:
            for name, (total, count) in state.items():
                merged.add(name, total, count)
        return merged


def format_means(means: dict[str, float]) -> str:
    """Return ``name=value`` pairs for a line of progress.

    A term that skipped nothing is not mentioned.
    """
    return " ".join(
        f"{name}={value:.4g}"
        for name, value in means.items()
        if value or not name.endswith(".skipped")
    )


def add_outputs(
    tracker: MetricsTracker, outputs: dict[str, TermOutput], num_cuts: int
) -> None:
    """Add every term and its extras, by name, per frame or utterance it counts.

    Also, as "<term>.skipped", the share of the batch's ``num_cuts`` that it skipped.
    """
    for name, output in outputs.items():
        tracker.add(name, output.sum, output.count)
        for extra, (total, count) in output.extras.items():
            tracker.add(f"{name}.{extra}", total, count)
        skipped = sum(map(len, output.skipped.values()))
        tracker.add(f"{name}.skipped", skipped, num_cuts)


def format_time(seconds: float) -> str:
    """Return h:mm:ss.

    >>> format_time(3725)
    '1:02:05'
    """
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


class MetricsWriter:
    """Writes metrics as JSON lines and, if asked, for TensorBoard."""

    def __init__(
        self,
        exp_dir: Path,
        step: int,
        epochs: int,
        tensorboard: bool,
        validating: bool = False,
    ) -> None:
        """Continue in ``exp_dir`` after ``step`` updates and ``epochs`` whole epochs.

        Later lines are removed: they belong to updates that were lost.

        Args:
          validating: whether all but the validation of one more epoch is done.
        """
        self.path = exp_dir / METRICS
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _is_past(line, step, epochs, validating)]
            write_text(self.path, "".join(f"{line}\n" for line in kept))
        self.board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(
                str(exp_dir / "tensorboard"), purge_step=step + 1
            )

    def write(self, kind: str, step: int, epoch: int, values: dict[str, float]) -> None:
        """Append one line; ``kind`` is "train", "epoch" or "dev"."""
        line = {"kind": kind, "step": step, "epoch": epoch, **values}
        with explain_failed_write(self.path, "make room and start again"):
            with open(self.path, "a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush what TensorBoard still holds."""
        if self.board is not None:
            self.board.close()


def read_metrics(path: Pathlike) -> tuple[Mapping[str, Any], ...]:
    """Read a metrics.jsonl; a last line cut short by a kill is left out.

    Raises:
      ValueError: naming the file and another line that is not metrics.
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
                raise ValueError(f"{path}:{number}: not a line of metrics") from e
    return tuple(found)


def _is_past(line: str, step: int, epochs: int, validating: bool) -> bool:
    """Return whether a line is kept; one that a kill cut short is not."""
    try:
        values = json.loads(line)
        # The end of an epoch may have been written without its checkpoint.
        last = epochs + (validating and values["kind"] == "epoch")
        early = values["kind"] == "train" or values["epoch"] <= last
        return values["step"] <= step and early
    except (json.JSONDecodeError, KeyError):
        return False
