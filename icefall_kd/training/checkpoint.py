"""Checkpoints: written whole, read without running code, resumed from.

A training checkpoint holds: ``model``, ``model_avg`` and ``avg_samples`` (running
mean), ``model_config``, ``bpe_model``, ``heads``, ``state``, ``config``, and what
only resuming needs (``RESUME_KEYS``).  What ``icefall_kd.bin.average`` writes for
decoding and export holds ``model``, ``model_config``, ``bpe_model`` and ``info``.
All of it is tensors and plain types, and nothing else is ever loaded.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Optional, Union

import torch
from torch import Tensor, nn

from icefall_kd.config import ModelConfig, from_dict, to_dict
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.io import naming_write, write_aside
from icefall_kd.transducer.build import build_model
from icefall_kd.transducer.icefall import model_of_icefall
from icefall_kd.transducer.model import AsrModel
from icefall_kd.weights_only import load_weights_only

Pathlike = Union[str, Path]
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


def save_checkpoint(path: Pathlike, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
      OSError: if it cannot be written; the file of that name is what it was.
    """
    remedy = "make room; what was written before is whole, and training goes on there"
    with naming_write(path, remedy), write_aside(path) as aside:
        with open(aside, "wb") as f:
            file = _PatientFile(f)
            torch.save(dict(checkpoint), file)
            file.raise_error()


class _PatientFile:
    """Keeps an error in writing for later: torch would end the process at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: Optional[OSError] = None

    def write(self, data: bytes) -> int:
        """Write, unless writing failed before."""
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as e:
                self._error = e
        return len(data)

    def flush(self) -> None:
        """Nothing: the file is closed soon."""

    def raise_error(self) -> None:
        """Raise the first error, if there was one."""
        if self._error is not None:
            raise self._error


def load_checkpoint(path: Pathlike) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if the file is damaged or is not a checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        checkpoint = load_weights_only(path)
    except Exception as e:  # torch raises whatever the broken bytes lead to
        raise ValueError(
            f"{path}: damaged or not a checkpoint ({type(e).__name__}: {e}); delete it"
        ) from e
    if not isinstance(checkpoint, dict) or "model" not in checkpoint:
        raise ValueError(f"{path}: not a checkpoint of icefall_kd, it has no 'model'")
    return checkpoint


def pack_bytes(data: Optional[bytes]) -> Optional[Tensor]:
    """Return bytes as a uint8 tensor, which every torch loads safely."""
    return None if data is None else torch.tensor(list(data), dtype=torch.uint8)


def unpack_bytes(data: Optional[Tensor]) -> Optional[bytes]:
    """Undo :func:`pack_bytes`."""
    return None if data is None else bytes(data.tolist())


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


def save_pretrained(
    path: Pathlike,
    model: Mapping[str, Tensor],
    model_config: Union[ModelConfig, Mapping[str, Any]],
    bpe_model: Optional[bytes],
    info: Mapping[str, Any],
) -> None:
    """Write what decoding and export read: the student without any head."""
    plain = (
        to_dict(model_config) if isinstance(model_config, ModelConfig) else model_config
    )
    save_checkpoint(
        path,
        {
            "model": dict(model),
            "model_config": dict(plain),
            "bpe_model": pack_bytes(bpe_model),
            "info": dict(info),
        },
    )


def load_model(
    path: Pathlike,
    device: str = "cpu",
    *,
    heads: Optional[Mapping[str, Any]] = None,
    needed: Sequence[str] = ("decoder", "joiner"),
) -> tuple[AsrModel, Optional[Tokenizer], dict[str, Any]]:
    """Read a student for decoding or export; nothing but the file is needed.

    Args:
      path: written by ``icefall_kd.bin.average``, or a training checkpoint; or one of
        icefall, whose shape is read from the weights.
      heads: of a model of icefall, see :mod:`icefall_kd.transducer.icefall`.
      needed: parts of the model that a file of icefall must have beside the encoder;
        any other that it lacks is None.
    Returns:
      (model in evaluation mode, its tokenizer or None where it saw no text, info).
      ``ctc_output`` of the model is None where the file holds a transducer alone; the
      info of a training checkpoint is its ``config``, ``epoch`` and ``step``.
    Raises:
      FileNotFoundError, ValueError: as :func:`load_checkpoint`, or if the weights
        are not those of the configuration beside them.
    """
    checkpoint = load_checkpoint(path)
    weights = checkpoint["model"]
    if "model_config" in checkpoint:
        if heads:
            raise ValueError(
                f"{path} carries its configuration; leave out {sorted(heads)}"
            )
        model = build_model(from_dict(ModelConfig, checkpoint["model_config"]))
        if not any(name.startswith("ctc_output.") for name in weights):
            model.ctc_output = None
    else:
        try:
            model, weights = model_of_icefall(checkpoint, heads or {}, needed)
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from e
    load_weights(model, weights, str(path))
    bpe_model = unpack_bytes(checkpoint.get("bpe_model"))
    tokenizer = None if bpe_model is None else Tokenizer.from_bytes(bpe_model)
    return model.to(device).eval(), tokenizer, read_info(checkpoint)


def read_info(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint, averaged or of training, holds on its run."""
    if "info" in checkpoint or "config" not in checkpoint:
        return dict(checkpoint.get("info", {}))
    state = checkpoint.get("state", {})
    progress = {name: state[name] for name in ("epoch", "step") if name in state}
    untrained = state.get("untrained", [])
    return {"config": checkpoint["config"], "untrained": untrained, **progress}


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load ``weights`` strictly.

    Raises:
      ValueError: if names or shapes differ; torch's own list of them is the message.
    """
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as e:
        problems = " ".join(str(e).split())
        raise ValueError(f"{where}: weights do not fit the model: {problems}") from e
