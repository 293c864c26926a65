"""The mean of a student's weights over a stretch of its training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Union

import torch
from torch import Tensor, nn

from icefall_kd.training.checkpoint import epoch_path, numbered
from icefall_kd.transducer.checkpoint import (
    load_checkpoint,
    read_info,
    save_pretrained,
    unpack_bytes,
)

Pathlike = Union[str, Path]


class RunningMean:
    """Mean of a model's weights over training, float64.

    Averaging over the run instead of picking a point of it; see Povey et al., the
    running average of k2's recipes.  The mean over any two checkpoints' interval
    follows from their means and numbers of samples.
    """

    def __init__(self, model: nn.Module) -> None:
        self.mean = {
            k: torch.zeros_like(v, dtype=torch.float64)
            for k, v in model.state_dict().items()
            if v.is_floating_point()
        }
        self.samples = 0

    def sample(self, model: nn.Module) -> None:
        """Add the present weights of ``model``."""
        self.samples += 1
        weights = model.state_dict()
        for name, mean in self.mean.items():
            mean += (weights[name].double() - mean) / self.samples

    def load(self, mean: Mapping[str, Tensor], samples: int) -> None:
        """Go on from a saved mean."""
        for name, value in self.mean.items():
            value.copy_(mean[name])
        self.samples = samples


def average(exp_dir: Pathlike, epoch: int, avg: int) -> dict[str, Tensor]:
    """Return the mean of the model over the updates of the last ``avg`` epochs.

    Each checkpoint holds the running mean m and number n of all samples up to it,
    so the mean between two of them is exact: (m1 n1 - m0 n0) / (n1 - n0).

    Args:
      epoch: last epoch, counted from 1.
      avg: number of epochs, 1 <= avg <= epoch.
    Raises:
      FileNotFoundError: if a checkpoint is missing.
      ValueError: if ``avg`` is out of range.
    """
    if not 1 <= avg <= epoch:
        there = "is 1 epoch" if epoch == 1 else f"are {epoch} epochs"
        raise ValueError(
            f"avg must be 1 to {epoch}, got {avg}: there {there} up to "
            f"{epoch_path(exp_dir, epoch)}; give a smaller --avg, or train on"
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
    """Write the mean of the last ``avg`` epochs as a pretrained file.

    Args:
      epoch: last epoch; 0 is the newest.
    Raises:
      FileNotFoundError, ValueError: as :func:`average`.
    """
    if epoch == 0:
        epochs = numbered(exp_dir, "epoch")
        if not epochs:
            raise FileNotFoundError(f"{exp_dir}: no epoch-*.pt; train first")
        epoch = epochs[0][0]
    model = average(exp_dir, epoch, avg)
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
