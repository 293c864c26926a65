"""Checkpoints: written whole, read without running code, resumed from.

A training checkpoint holds: ``model``, ``model_avg`` and ``avg_samples`` (running
mean), ``model_config``, ``bpe_model``, ``heads``, ``state``, ``config``, and what
only resuming needs (``RESUME_KEYS``).  What ``icefall_kd.bin.average`` writes for
decoding and export holds ``model``, ``model_config``, ``bpe_model`` and ``info``.
All of it is tensors and plain types, and nothing else is ever loaded.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from torch import Tensor

from icefall_kd.transducer.checkpoint import Pathlike, load_checkpoint, save_checkpoint
from icefall_kd.transducer.model import AsrModel

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


def epoch_path(exp_dir: Pathlike, epoch: int) -> Path:
    """Return the path of the checkpoint at the end of ``epoch``, counted from 1."""
    return Path(exp_dir) / f"epoch-{epoch}.pt"


def step_path(exp_dir: Pathlike, step: int) -> Path:
    """Return the path of the checkpoint after ``step`` updates."""
    return Path(exp_dir) / f"checkpoint-{step}.pt"


def numbered(exp_dir: Pathlike, stem: str) -> list[tuple[int, Path]]:
    """Return (number, path) of ``<stem>-<number>.pt``, the newest first."""
    pattern = re.compile(rf"{stem}-(\d+)\.pt")
    found = [(pattern.fullmatch(p.name), p) for p in Path(exp_dir).glob("*.pt")]
    return sorted(((int(m.group(1)), p) for m, p in found if m), reverse=True)


def newest_checkpoint(exp_dir: Pathlike) -> Optional[dict[str, Any]]:
    """Return the checkpoint that training goes on from, None if there is none.

    A damaged one is reported and the one before it is used.

    Raises:
      ValueError: if there are checkpoints, but none is whole.
    """
    best, damaged = None, []
    for stem in ("epoch", "checkpoint"):
        for _, path in numbered(exp_dir, stem):
            try:
                found = load_checkpoint(path)
            except ValueError as e:
                logging.warning("%s; trying the one before", e)
                damaged.append(path.name)
                continue
            if "optimizer" not in found:
                continue
            if best is None or found["state"]["step"] > best["state"]["step"]:
                best = found
            break
    if best is None and damaged:
        raise ValueError(f"{exp_dir}: no whole checkpoint among {damaged}; delete them")
    return best


def tidy(exp_dir: Pathlike, keep_optimizer: int) -> None:
    """Remove checkpoints within epochs and what old epochs keep for resuming."""
    for _, path in numbered(exp_dir, "checkpoint"):
        path.unlink()
    for _, path in numbered(exp_dir, "epoch")[keep_optimizer:]:
        try:
            checkpoint = load_checkpoint(path)
        except ValueError as e:  # not needed to go on; averaging will tell it again
            logging.warning("%s", e)
            continue
        if any(key in checkpoint for key in RESUME_KEYS):
            save_checkpoint(
                path, {k: v for k, v in checkpoint.items() if k not in RESUME_KEYS}
            )


def load_start(
    model: AsrModel, weights: Mapping[str, Tensor], where: str, encoder_only: bool
) -> list[str]:
    """Start ``model`` from the weights of another, part by part.

    A part is a module of the model: the encoder must be there, another one that
    ``weights`` lack stays as it was initialised.  Both this and the parts that only
    ``weights`` have are logged.

    Args:
      where: for the messages, whose weights these are.
      encoder_only: take no other part.
    Returns:
      the parts that were not loaded, sorted.
    Raises:
      ValueError: if a tensor of a part is missing or has another shape; the message
        lists some.
    """
    own = model.state_dict()
    here, there = ({k.split(".")[0] for k in d} for d in (own, weights))
    taken = here & {"encoder_embed", "encoder"}
    if not encoder_only:
        taken |= here & there
    given = {k: v for k, v in weights.items() if k.split(".")[0] in taken}
    own = {k: v for k, v in own.items() if k.split(".")[0] in taken}
    wrong = [
        f"{k}: {_shape(given.get(k))} there, {_shape(own.get(k))} here"
        for k in sorted(set(given) | set(own))
        if _shape(given.get(k)) != _shape(own.get(k))
    ]
    if wrong:
        raise ValueError(
            f"{where}: its model is not of this shape, {len(wrong)} tensors differ: "
            + "; ".join(wrong[:5])
            + ". Give model the shape of that checkpoint, or choose another"
        )
    model.load_state_dict(given, strict=False)
    new = sorted(here - taken)
    logging.info(
        "%s: loaded %s; initialised anew: %s", where, sorted(taken), new or "none"
    )
    if there - here:
        logging.info("%s: left out, unknown here: %s", where, sorted(there - here))
    return new


def _shape(tensor: Optional[Tensor]) -> str:
    return "none" if tensor is None else str(tuple(tensor.shape))


def config_differences(here: Any, there: Any, prefix: str = "") -> list[str]:
    """Return ``name: there -> here`` for every value that differs."""
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        return [
            line
            for key in {**here, **there}
            for line in config_differences(
                here.get(key), there.get(key), f"{prefix}.{key}" if prefix else key
            )
        ]
    return [] if here == there else [f"{prefix}: {there} -> {here}"]
