"""What training wrote: its metrics, and how much it was given."""

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

# Of a run's files, what changes nothing in its result.
UNIMPORTANT = ("exp_dir:", "command:", "threads:", "num_threads:", "log_interval:")
NEAR = 0.05  # relative difference of updates that batching alone brings


@dataclass(frozen=True)
class Stage:
    """One training run.

    Attributes:
      name: of its folder.
      lines: of metrics.jsonl, in their order.
      config: what config.yaml says; empty when it is not there.
      environment: what environment.json says; empty when it is not there.
      checkpoint: epoch, avg and step of the checkpoint taken from this run; empty when
        they are not known: then the counts are those of the whole run.
      changes: what was changed within the run, and after which update.
    """

    name: str
    lines: tuple[Mapping[str, Any], ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Mapping[str, int] = field(default_factory=dict)
    changes: tuple[str, ...] = ()

    @property
    def updates(self) -> int:
        """Updates up to the checkpoint, the last one that an average covers."""
        if "step" in self.checkpoint:
            return self.checkpoint["step"]
        return max((line["step"] for line in self.lines), default=0)

    @property
    def epochs(self) -> int:
        """Whole epochs up to the checkpoint: those after which dev was validated."""
        if "epoch" in self.checkpoint:
            return self.checkpoint["epoch"]
        dev = [line["epoch"] for line in self.lines if line["kind"] == "dev"]
        return max(dev, default=0)

    @property
    def sets(self) -> tuple[str, ...]:
        """What it heard, with the shares of what was mixed in."""
        data = self.config.get("data", {})
        mixed = [f"{name} ({share:g})" for name, share in data.get("mix", {}).items()]
        return (*data.get("train", ()), *mixed)

    def describe(self) -> str:
        """Return its budget for people."""
        planned = self.config.get("num_epochs")
        epochs = str(self.epochs)
        if planned not in (None, self.epochs):
            epochs += f" of {planned}"
        told = f"{epochs} epochs, {self.updates} updates"
        duration = self.config.get("data", {}).get("max_duration")
        if duration:
            told += f" of at most {duration:g} s"
        if self.sets:
            told += f" on {', '.join(self.sets)}"
        if "avg" in self.checkpoint:
            told += f"; weights averaged over the last {self.checkpoint['avg']} epochs"
        elif not self.checkpoint:
            told += "; counts of the whole run, its checkpoint's are not known"
        return "; ".join([told, *self.changes])

    def points(self, kind: str, metric: str) -> list[tuple[int, float]]:
        """Return (step, value) of a metric on "train" or "dev", finite ones alone."""
        return [
            (line["step"], line[metric])
            for line in self.lines
            if line["kind"] == kind
            and isinstance(line.get(metric), (int, float))
            and math.isfinite(line[metric])
        ]


@dataclass(frozen=True)
class Run:
    """The training of a system, stage by stage, the last one that of its checkpoint."""

    stages: tuple[Stage, ...] = ()

    @property
    def finetuning(self) -> Optional[Stage]:
        """The stage that made the recogniser."""
        return self.stages[-1] if self.stages else None


def _load_stage(name: str, folder: Path, checkpoint: Mapping[str, int]) -> Stage:
    config, environment = folder / "config.yaml", folder / "environment.json"
    return Stage(
        name,
        read_metrics(folder / METRICS),
        (read_yaml(config) if config.is_file() else None) or {},
        read_json(environment) if environment.is_file() else {},
        checkpoint,
        (*_changes(config, read_yaml), *_changes(environment, read_json)),
    )


def _changes(path: Path, read: Callable[[Path], Any]) -> Iterator[str]:
    """Yield what was changed after which update, of a file with kept versions."""
    pattern = re.compile(rf"{path.stem}\.(\d+){path.suffix}")
    found = ((pattern.fullmatch(p.name), p) for p in path.parent.glob("*"))
    kept = sorted((int(m[1]), p) for m, p in found if m)
    files = [*(p for _, p in kept), path]
    for (step, before), after in zip(kept, files[1:]):
        lines = config_differences(read(after), read(before))
        lines = [x for x in lines if not x.startswith(UNIMPORTANT)]
        if lines:
            yield f"changed midway, after update {step}: {', '.join(lines)}"


def _stage_folder(checkpoint: Optional[str], near: Path) -> Optional[Path]:
    """Return the folder of the run that wrote a checkpoint, if it is still there.

    Args:
      checkpoint: as written down, relative to where that command ran.
      near: the system's folder, by which it is found when it was moved, or when this
        command runs elsewhere.
    """
    if not checkpoint:
        return None
    written = as_path(checkpoint).parent
    name = written.name
    places = (written, near.parent / written.parent.name / name, near / name, near)
    return next((p for p in places if p.name == name and (p / METRICS).is_file()), None)


def _counts(checkpoint: Path) -> Mapping[str, int]:
    """Return epoch, avg and step of a checkpoint file; empty when it is missing."""
    from icefall_kd.transducer.checkpoint import load_checkpoint

    if not checkpoint.is_file():
        return {}
    return training_info(load_checkpoint(checkpoint).get("info", {})) or {}


def find_run(
    result_path: Path,
    checkpoint: Optional[str],
    training: Optional[Mapping[str, int]] = None,
) -> Run:
    """Return the training that led to a result.

    Args:
      result_path: the JSON, in ``<system>/decode`` beside ``<system>/finetune``, or in
        a folder below the run's.
      checkpoint: that was decoded; what it was initialised from is followed.
      training: its epoch, avg and step, as the result has them.
    Returns:
      the stages, the first one first; none where nothing was kept.
    """
    folder = _stage_folder(checkpoint, result_path.parent.parent)
    counts: Mapping[str, int] = training or {}
    stages: dict[Path, Stage] = {}
    while folder is not None and folder.resolve() not in stages:
        taken = {s.name for s in stages.values()}
        name = folder.name
        stage = _load_stage(
            f"{folder.parent.name}/{name}" if name in taken else name, folder, counts
        )
        stages[folder.resolve()] = stage
        origin = stage.config.get("init_encoder") or stage.config.get("init_model")
        folder = _stage_folder(origin, folder.parent)
        counts = _counts(folder / as_path(origin).name) if folder else {}
    return Run(tuple(reversed(list(stages.values()))))


def budget_differences(ours: Run, theirs: Run) -> list[str]:
    """Say how the fine-tuning of two systems differs in what it was given.

    Updates within 5 % of each other count as equal: batches of random utterances are
    not of one size.
    """
    a, b = ours.finetuning, theirs.finetuning
    if a is None or b is None:
        return [] if a is b else ["its fine-tuning or the other's is not known"]
    differences = []
    if a.sets != b.sets:
        differences.append(f"sets {', '.join(a.sets)} against {', '.join(b.sets)}")
    if a.epochs != b.epochs:
        differences.append(f"{a.epochs} epochs against {b.epochs}")
    if abs(a.updates - b.updates) > NEAR * max(a.updates, b.updates):
        differences.append(f"{a.updates} updates against {b.updates}")
    return differences


def stage_names(runs: Iterable[Run]) -> list[str]:
    """Return the names of all stages, as the longest training had them."""
    longest_first = sorted(runs, key=lambda run: -len(run.stages))
    return list(dict.fromkeys(s.name for run in longest_first for s in run.stages))


def seeds(run: Run) -> dict[str, Any]:
    """Return the seed of each stage that tells it."""
    return {s.name: s.config["seed"] for s in run.stages if "seed" in s.config}
