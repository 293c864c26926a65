"""Read the metrics, configuration, environment and lengths of training runs."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

from icefall_kd.core.config import config_differences
from icefall_kd.core.files import as_path, read_json, read_yaml
from icefall_kd.recognition.options import training_info
from icefall_kd.training.metrics import METRICS, read_metrics
from icefall_kd.transducer.checkpoint import load_checkpoint

# Options that do not change the result of a run.
IRRELEVANT = ("exp_dir:", "command:", "threads:", "num_threads:", "log_interval:")
TOLERANCE = 0.05  # of the number of updates, which differs since batches are random


@dataclass(frozen=True)
class Stage:
    """One training run.

    Attributes:
      name: name of its folder.
      lines: lines of metrics.jsonl.
      config: content of config.yaml; empty if the file is missing.
      environment: content of environment.json; empty if the file is missing.
      checkpoint: ``epoch``, ``avg`` and ``step`` of the decoded checkpoint; empty if
        unknown, then ``updates`` and ``epochs`` count the complete run.
      changes: options that changed when the run was resumed, with the update.
    """

    name: str
    lines: tuple[Mapping[str, Any], ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Mapping[str, int] = field(default_factory=dict)
    changes: tuple[str, ...] = ()

    @property
    def updates(self) -> int:
        """Number of updates before the checkpoint, or before the last averaged one."""
        if "step" in self.checkpoint:
            return self.checkpoint["step"]
        return max((line["step"] for line in self.lines), default=0)

    @property
    def epochs(self) -> int:
        """Number of complete epochs before the checkpoint."""
        if "epoch" in self.checkpoint:
            return self.checkpoint["epoch"]
        dev = [line["epoch"] for line in self.lines if line["kind"] == "dev"]
        return max(dev, default=0)

    @property
    def sets(self) -> tuple[str, ...]:
        """Training sets, then the sets of ``data.mix`` with their shares."""
        data = self.config.get("data", {})
        mixed = [f"{name} ({share:g})" for name, share in data.get("mix", {}).items()]
        return (*data.get("train", ()), *mixed)

    def describe(self) -> str:
        """Return a text with the length, sets and averaging of the run."""
        planned = self.config.get("num_epochs")
        epochs = str(self.epochs)
        if planned not in (None, self.epochs):
            epochs += f" of {planned}"
        text = f"{epochs} epochs, {self.updates} updates"
        duration = self.config.get("data", {}).get("max_duration")
        if duration:
            text += f" of at most {duration:g} s"
        if self.sets:
            text += f" on {', '.join(self.sets)}"
        if "avg" in self.checkpoint:
            text += f"; weights averaged over the last {self.checkpoint['avg']} epochs"
        elif not self.checkpoint:
            text += "; counts of the complete run, those of the checkpoint are unknown"
        return "; ".join([text, *self.changes])

    def points(self, kind: str, metric: str) -> list[tuple[int, float]]:
        """Return the finite values of a metric.

        Args:
          kind: "train" or "dev".
          metric: its name.
        Returns:
          (update, value) pairs.
        """
        return [
            (line["step"], line[metric])
            for line in self.lines
            if line["kind"] == kind
            and isinstance(line.get(metric), (int, float))
            and math.isfinite(line[metric])
        ]


@dataclass(frozen=True)
class Run:
    """The training stages of a system in their order; the last one was decoded."""

    stages: tuple[Stage, ...] = ()

    @property
    def last_stage(self) -> Optional[Stage]:
        """The stage that was decoded, usually fine-tuning."""
        return self.stages[-1] if self.stages else None

    @property
    def seeds(self) -> list[Any]:
        """Seeds of the stages, each once."""
        seeds = (s.config["seed"] for s in self.stages if "seed" in s.config)
        return list(dict.fromkeys(seeds))


def find_run(
    result_path: Path,
    checkpoint: Optional[str],
    training: Optional[Mapping[str, int]] = None,
) -> Run:
    """Return the training that produced a result.

    Args:
      result_path: the result JSON in ``<system>/decode``; the run is
        ``<system>/finetune`` or ``<system>`` itself.
      checkpoint: path of the decoded checkpoint.  Earlier stages are the runs of its
        ``init_encoder`` or ``init_model``.
      training: ``epoch``, ``avg`` and ``step`` of the checkpoint, from the result.
    Returns:
      the run; it has no stages if the training folder is missing.
    """
    folder = _find_stage_dir(checkpoint, result_path.parent.parent)
    counts: Mapping[str, int] = training or {}
    stages: dict[Path, Stage] = {}
    while folder is not None and folder.resolve() not in stages:
        taken = {s.name for s in stages.values()}
        name = folder.name
        if name in taken:
            name = f"{folder.parent.name}/{name}"
        stage = _load_stage(name, folder, counts)
        stages[folder.resolve()] = stage
        origin = stage.config.get("init_encoder") or stage.config.get("init_model")
        folder = _find_stage_dir(origin, folder.parent)
        counts = _load_counts(folder / as_path(origin).name) if folder else {}
    return Run(tuple(reversed(list(stages.values()))))


def _find_stage_dir(checkpoint: Optional[str], near: Path) -> Optional[Path]:
    """Return the folder of the run that wrote a checkpoint, None if it is missing.

    Args:
      checkpoint: absolute path, or relative to the folder of the training command.
      near: folder of the system, searched if the run was moved or the current folder is
        another one.
    """
    if not checkpoint:
        return None
    written = as_path(checkpoint).parent
    name = written.name
    candidates = (written, near.parent / written.parent.name / name, near / name, near)
    return next(
        (p for p in candidates if p.name == name and (p / METRICS).is_file()), None
    )


def _load_stage(name: str, folder: Path, checkpoint: Mapping[str, int]) -> Stage:
    config, environment = folder / "config.yaml", folder / "environment.json"
    return Stage(
        name,
        read_metrics(folder / METRICS),
        (read_yaml(config) if config.is_file() else None) or {},
        read_json(environment) if environment.is_file() else {},
        checkpoint,
        (*_find_changes(config, read_yaml), *_find_changes(environment, read_json)),
    )


def _find_changes(path: Path, read: Callable[[Path], Any]) -> Iterator[str]:
    """Yield the changes between a file and its earlier versions NAME.UPDATE.SUFFIX."""
    pattern = re.compile(rf"{path.stem}\.(\d+){path.suffix}")
    found = ((pattern.fullmatch(p.name), p) for p in path.parent.glob("*"))
    earlier = sorted((int(m[1]), p) for m, p in found if m)
    files = [*(p for _, p in earlier), path]
    for (step, before), after in zip(earlier, files[1:]):
        lines = config_differences(read(after), read(before))
        lines = [x for x in lines if not x.startswith(IRRELEVANT)]
        if lines:
            yield f"changed after update {step}: {', '.join(lines)}"


def _load_counts(checkpoint: Path) -> Mapping[str, int]:
    """Return epoch, avg and step of a checkpoint file; empty if it is missing."""
    if not checkpoint.is_file():
        return {}
    return training_info(load_checkpoint(checkpoint).get("info", {})) or {}


def compare_budgets(ours: Run, theirs: Run) -> list[str]:
    """Return the differences in sets, epochs and updates of the last stages.

    Updates may differ by 5 %, since batches are random.
    """
    a, b = ours.last_stage, theirs.last_stage
    if a is None or b is None:
        return [] if a is b else ["the fine-tuning of one of them is unknown"]
    differences = []
    if a.sets != b.sets:
        differences.append(f"sets {', '.join(a.sets)} against {', '.join(b.sets)}")
    if a.epochs != b.epochs:
        differences.append(f"{a.epochs} epochs against {b.epochs}")
    if abs(a.updates - b.updates) > TOLERANCE * max(a.updates, b.updates):
        differences.append(f"{a.updates} updates against {b.updates}")
    return differences


def stage_names(runs: Iterable[Run]) -> list[str]:
    """Return the names of all stages, in the order of the longest run."""
    longest_first = sorted(runs, key=lambda run: -len(run.stages))
    return list(dict.fromkeys(s.name for run in longest_first for s in run.stages))
