"""Training checkpoints: progress, random states, files, averages of weights.

A training checkpoint holds ``model``, ``model_avg`` and ``avg_samples`` (running
mean), ``model_config``, ``bpe_model``, ``heads``, ``state`` (:class:`TrainState`),
``config`` and ``trained_parts``, and the entries in :data:`RESUME_KEYS`, which only
resuming needs.  ``icefall_kd.bin.average`` writes ``model``, ``model_config``,
``bpe_model`` and ``info``, which decoding and export read.  All values are tensors and
plain types, so ``torch.load(weights_only=True)`` reads them.
"""

import logging
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor, nn

from icefall_kd.core.files import Pathlike
from icefall_kd.transducer.checkpoint import (
    load_checkpoint,
    read_info,
    save_checkpoint,
    save_pretrained,
    unpack_bytes,
)
from icefall_kd.zipformer.regularisers import Whiten

RESUME_KEYS = (
    "optimizer",
    "scheduler",
    "scaler",
    "sampler",
    "rng",
    "regularisers",
    "metrics",
    "skipped",
)


@dataclass
class TrainState:
    """Progress of a run.

    Attributes:
      step: optimiser updates so far.
      epoch: finished epochs.
      batch: batches of the current epoch so far, skipped ones included.
      validating: True if the current epoch has no batch left, but is not validated.
      bad_in_row: consecutive updates skipped for a non-finite loss or gradient.
      bad_total: all updates skipped for that reason.
      samples_before: samples in the running mean before the current epoch.
      untrained: parts of the student that were random at the start of a run with
        ``init_model`` or ``init_encoder``.
      audio: seconds of audio trained on in all epochs, over all processes.
      seconds: wall time of all sessions of the run, in seconds.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    validating: bool = False
    bad_in_row: int = 0
    bad_total: int = 0
    samples_before: int = 0
    untrained: list[str] = field(default_factory=list)
    audio: float = 0.0
    seconds: float = 0.0


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_rng_state() -> dict[str, Any]:
    """Return the random states of Python, NumPy and torch as plain types."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore the result of :func:`get_rng_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    keys = np.array(keys, dtype=np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        # This machine may have fewer devices than the one that saved the state.
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


def get_whiten_probs(model: nn.Module) -> dict[str, float]:
    """Return the adaptive probability of every Whiten module, by module name."""
    return {k: m.prob for k, m in model.named_modules() if isinstance(m, Whiten)}


def set_whiten_probs(model: nn.Module, probs: Mapping[str, float]) -> None:
    """Restore the result of :func:`get_whiten_probs`."""
    for name, module in model.named_modules():
        if isinstance(module, Whiten):
            module.prob = probs[name]


def epoch_path(exp_dir: Pathlike, epoch: int) -> Path:
    """Return the path of the checkpoint at the end of ``epoch``, counted from 1."""
    return Path(exp_dir) / f"epoch-{epoch}.pt"


def step_path(exp_dir: Pathlike, step: int) -> Path:
    """Return the path of the checkpoint after ``step`` updates."""
    return Path(exp_dir) / f"checkpoint-{step}.pt"


def list_checkpoints(exp_dir: Pathlike, stem: str) -> list[tuple[int, Path]]:
    """Return (number, path) of every ``<stem>-<number>.pt``, newest first."""
    pattern = re.compile(rf"{stem}-(\d+)\.pt")
    found = [(pattern.fullmatch(p.name), p) for p in Path(exp_dir).glob("*.pt")]
    return sorted(((int(m.group(1)), p) for m, p in found if m), reverse=True)


def load_newest_checkpoint(exp_dir: Pathlike) -> Optional[dict[str, Any]]:
    """Return the newest checkpoint that training can resume from, or None.

    A damaged file is logged, and the one before it is tried.

    Raises:
      ValueError: if all checkpoints are damaged.
    """
    newest, damaged = None, []
    for stem in ("epoch", "checkpoint"):
        for _, path in list_checkpoints(exp_dir, stem):
            try:
                found = load_checkpoint(path)
            except ValueError as e:
                logging.warning("%s; trying the previous checkpoint", e)
                damaged.append(path.name)
                continue
            if "optimizer" not in found:
                continue
            if newest is None or found["state"]["step"] > newest["state"]["step"]:
                newest = found
            break
    if newest is None and damaged:
        raise ValueError(
            f"{exp_dir}: all checkpoints are damaged: {damaged}. Delete them to start "
            "again."
        )
    return newest


def remove_step_checkpoints(exp_dir: Pathlike, keep: int = 0) -> None:
    """Remove the checkpoints within an epoch, except the newest ``keep``."""
    for _, path in list_checkpoints(exp_dir, "checkpoint")[keep:]:
        path.unlink()


def shrink_epoch_checkpoints(exp_dir: Pathlike, keep_optimizer: int) -> None:
    """Remove the entries in :data:`RESUME_KEYS` from the checkpoints of old epochs.

    Args:
      keep_optimizer: number of newest epochs that keep these entries.
    """
    for _, path in list_checkpoints(exp_dir, "epoch")[keep_optimizer:]:
        try:
            checkpoint = load_checkpoint(path)
        except ValueError as e:  # resuming does not need it; averaging raises again
            logging.warning("%s", e)
            continue
        if any(key in checkpoint for key in RESUME_KEYS):
            save_checkpoint(
                path, {k: v for k, v in checkpoint.items() if k not in RESUME_KEYS}
            )


class RunningMean:
    """Mean of a model's weights over all samples since the start, in float64.

    The mean over any interval between two checkpoints follows from their means and
    numbers of samples; see icefall's ``average_checkpoints_with_averaged_model``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.mean = {
            k: torch.zeros_like(v, dtype=torch.float64)
            for k, v in model.state_dict().items()
            if v.is_floating_point()
        }
        self.samples = 0

    def sample(self, model: nn.Module) -> None:
        """Add the current weights of ``model``."""
        self.samples += 1
        weights = model.state_dict()
        for name, mean in self.mean.items():
            mean += (weights[name].double() - mean) / self.samples

    def load(self, mean: Mapping[str, Tensor], samples: int) -> None:
        """Copy a saved mean of ``samples`` samples."""
        for name, value in self.mean.items():
            value.copy_(mean[name])
        self.samples = samples


def average_epochs(exp_dir: Pathlike, epoch: int, avg: int) -> dict[str, Tensor]:
    """Return the mean of the weights over the last ``avg`` epochs.

    From the running means m and numbers of samples n of two checkpoints:
    (m1 n1 - m0 n0) / (n1 - n0).

    Args:
      epoch: last epoch, counted from 1.
      avg: number of epochs, 1 <= avg <= epoch.
    Raises:
      FileNotFoundError: if a checkpoint is missing.
      ValueError: if ``avg`` is out of range.
    """
    if not 1 <= avg <= epoch:
        raise ValueError(
            f"--avg {avg}: must be 1 to {epoch}, the number of epochs up to "
            f"{epoch_path(exp_dir, epoch)}. Lower --avg or train for more epochs."
        )
    last = load_checkpoint(epoch_path(exp_dir, epoch))
    mean, samples = last["model_avg"], last["avg_samples"]
    if avg < epoch:
        first = load_checkpoint(epoch_path(exp_dir, epoch - avg))
        before = first["avg_samples"]
        mean = {
            k: (v * samples - first["model_avg"][k] * before) / (samples - before)
            for k, v in mean.items()
        }
    return {
        k: mean[k].to(v.dtype) if k in mean else v for k, v in last["model"].items()
    }


def write_average(exp_dir: Pathlike, epoch: int, avg: int, output: Pathlike) -> None:
    """Write the mean of the last ``avg`` epochs for decoding and export.

    Args:
      epoch: last epoch; 0 is the newest.
    Raises:
      FileNotFoundError, ValueError: see :func:`average_epochs`.
    """
    if epoch == 0:
        epochs = list_checkpoints(exp_dir, "epoch")
        if not epochs:
            raise FileNotFoundError(f"{exp_dir}: no epoch-*.pt; train first")
        epoch = epochs[0][0]
    model = average_epochs(exp_dir, epoch, avg)
    last = load_checkpoint(epoch_path(exp_dir, epoch))
    info = {
        "exp_dir": str(exp_dir),
        "epoch": epoch,
        "avg": avg,
        "step": last["state"]["step"],
        **read_info(last),
    }
    save_pretrained(
        output, model, last["model_config"], unpack_bytes(last["bpe_model"]), info
    )
