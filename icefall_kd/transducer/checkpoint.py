"""Checkpoints of the student, and the heads that a checkpoint has and has trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Optional, Union

import torch
from torch import Tensor, nn

from icefall_kd.core.config import (
    ModelConfig,
    drop_removed_options,
    from_dict,
    rename_options,
    to_dict,
)
from icefall_kd.core.files import Pathlike, explain_failed_write, write_atomically
from icefall_kd.core.weights import load_weights_only
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.transducer.icefall import build_icefall_model
from icefall_kd.transducer.model import AsrModel, build_model

# Head -> parts of the model that a search over it needs.
HEADS = {"transducer": ("decoder", "joiner"), "ctc": ("ctc_output",)}
ENCODER = ("encoder_embed", "encoder")
# Parts that each term trains, to read checkpoints without the key "trained_parts".
TRAINED_BY_TERM = {
    "transducer": ("decoder", "joiner", "simple_am_proj", "simple_lm_proj"),
    "ctc": ("ctc_output",),
    "inter_ctc": ("ctc_output",),
    "essence": ("ctc_output",),
    "lfmmi": ("ctc_output",),
    "one_best": ("decoder", "joiner"),
}


def check_parts(model: nn.Module, head: str) -> None:
    """Check that a model has all parts of a head.

    Args:
      head: a key of :data:`HEADS`.
    Raises:
      ValueError: if a part is missing.
    """
    missing = [part for part in HEADS[head] if getattr(model, part, None) is None]
    if missing:
        raise ValueError(
            f"the model has no {head} head ({', '.join(missing)} is missing); train "
            f"one with terms.{head}.weight above 0, or use another head"
        )


def check_head(
    model: nn.Module, head: str, info: Mapping[str, Any], where: str
) -> None:
    """Check that a student has a head and that the head was trained.

    Args:
      head: a key of :data:`HEADS`.
      info: of the checkpoint, see :func:`read_info`.  Without the ``config`` of a run,
        every head counts as trained.
      where: name of the checkpoint, for error messages.
    Raises:
      ValueError: if the head is missing or untrained.
    """
    try:
        check_parts(model, head)
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from e
    untrained = set(HEADS[head]) & untrained_parts(info)
    if untrained:
        raise ValueError(
            f"{where}: no term trained the {head} head "
            f"({', '.join(sorted(untrained))}); train with terms.{head}.weight above "
            "0, or use another head"
        )


def untrained_parts(info: Mapping[str, Any]) -> set[str]:
    """Return the parts of heads that still have random weights; empty if unknown.

    Args:
      info: of a checkpoint, see :func:`read_info`.
    """
    config = info.get("config") or {}
    if "terms" not in config:
        return set()
    untrained = {part for parts in HEADS.values() for part in parts}
    if config.get("init_model"):
        untrained = set(info.get("untrained") or ())
    return untrained - trained_parts(info)


def trained_parts(info: Mapping[str, Any]) -> set[str]:
    """Return the parts that the run of a checkpoint trained, without the encoder.

    Args:
      info: of a checkpoint, see :func:`read_info`; with "trained_parts", or with the
        terms in "config".
    """
    if "trained_parts" in info:
        return set(info["trained_parts"])
    parts: set[str] = set()
    for name, options in info["config"]["terms"].items():
        if not options or options.get("weight", 1.0) <= 0:
            continue
        if name != "inter_ctc" or options.get("final", True):
            parts.update(TRAINED_BY_TERM.get(name, ()))
    return parts


def count_parameters(model: nn.Module, head: str = "transducer") -> int:
    """Return the number of parameters that decoding with ``head`` uses."""
    parts = [getattr(model, name) for name in (*ENCODER, *HEADS[head])]
    return sum(p.numel() for part in parts for p in part.parameters())


def save_checkpoint(path: Pathlike, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
      OSError: if the file cannot be written; an existing file is unchanged.
    """
    remedy = "free disk space; earlier checkpoints are complete, and training resumes"
    with explain_failed_write(path, remedy), write_atomically(path) as temporary:
        with open(temporary, "wb") as f:
            file = _DeferringFile(f)
            torch.save(dict(checkpoint), file)
            file.raise_error()


class _DeferringFile:
    """File for ``torch.save`` that defers write errors, which would abort the process.

    The caller calls `raise_error` after ``torch.save``.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: Optional[OSError] = None

    def write(self, data: bytes) -> int:
        """Write ``data``, unless an earlier write failed."""
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as e:
                self._error = e
        return len(data)

    def flush(self) -> None:
        """Do nothing; closing the file flushes it."""

    def raise_error(self) -> None:
        """Raise the first write error."""
        if self._error is not None:
            raise self._error


def load_checkpoint(path: Pathlike) -> dict[str, Any]:
    """Return the content of a checkpoint, with tensors on the CPU.

    Former names of options in its configuration are replaced.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is damaged or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; give a file of bin.train, bin.average or "
            "icefall"
        )
    try:
        checkpoint = load_weights_only(path)
    except Exception as e:  # the type depends on the damage
        raise ValueError(
            f"{path}: damaged or not a checkpoint ({type(e).__name__}: {e}); use "
            "another one, or delete this one to resume from an earlier one"
        ) from e
    if not isinstance(checkpoint, dict) or "model" not in checkpoint:
        raise ValueError(
            f"{path}: not a checkpoint (it has no 'model'); use a file of bin.train or "
            "bin.average"
        )
    if "model_config" in checkpoint:
        options = rename_options(checkpoint["model_config"], "model.")
        checkpoint["model_config"] = drop_removed_options(options, "model.")
    for holder in (checkpoint, checkpoint.get("info") or {}):
        if holder.get("config"):
            holder["config"] = drop_removed_options(rename_options(holder["config"]))
    return checkpoint


def pack_bytes(data: Optional[bytes]) -> Optional[Tensor]:
    """Return bytes as a uint8 tensor, which every torch loads with ``weights_only``."""
    return None if data is None else torch.tensor(list(data), dtype=torch.uint8)


def unpack_bytes(data: Optional[Tensor]) -> Optional[bytes]:
    """Return the bytes that :func:`pack_bytes` packed."""
    return None if data is None else bytes(data.tolist())


def save_pretrained(
    path: Pathlike,
    model: Mapping[str, Tensor],
    model_config: Union[ModelConfig, Mapping[str, Any]],
    bpe_model: Optional[bytes],
    info: Mapping[str, Any],
) -> None:
    """Write a student for decoding and export.

    Args:
      model: state dict of the student, without heads of terms.
      model_config: of the student.
      bpe_model: content of the BPE model; None if the run used no text.
      info: of the run, see :func:`read_info`.
    Raises:
      OSError: see :func:`save_checkpoint`.
    """
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
    """Load a student for decoding or export from one file.

    Args:
      path: a file of ``icefall_kd.bin.average``, a training checkpoint, or a checkpoint
        of icefall.
      device: of the model.
      heads: head options of an icefall model, see
        :mod:`icefall_kd.transducer.icefall`.
      needed: parts that an icefall checkpoint must have besides the encoder; other
        missing parts are None.
    Returns:
      (model in evaluation mode, tokenizer, info).  ``ctc_output`` is None if the file
      has no CTC head.  The tokenizer is None if the run used no text, and for icefall.
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: see :func:`load_checkpoint`; also if the weights do not fit the
        configuration, or ``heads`` is given for a checkpoint of this project.
    """
    checkpoint = load_checkpoint(path)
    weights = checkpoint["model"]
    if "model_config" in checkpoint:
        if heads:
            raise ValueError(
                f"{path}: it contains its configuration; leave out {sorted(heads)}"
            )
        model = build_model(from_dict(ModelConfig, checkpoint["model_config"]))
        if not any(name.startswith("ctc_output.") for name in weights):
            model.ctc_output = None
    else:
        try:
            model, weights = build_icefall_model(checkpoint, heads or {}, needed)
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from e
    load_weights(model, weights, str(path))
    bpe_model = unpack_bytes(checkpoint.get("bpe_model"))
    tokenizer = None if bpe_model is None else Tokenizer.from_bytes(bpe_model)
    return model.to(device).eval(), tokenizer, read_info(checkpoint)


def read_info(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the information on the run in a checkpoint.

    Returns:
      "info" of an averaged model; from a training checkpoint "config", "untrained" and,
      if present, "epoch", "step" and "trained_parts"; empty for a model of icefall.
    """
    if "info" in checkpoint or "config" not in checkpoint:
        return dict(checkpoint.get("info", {}))
    state = checkpoint.get("state", {})
    progress = {name: state[name] for name in ("epoch", "step") if name in state}
    untrained = state.get("untrained", [])
    info = {"config": checkpoint["config"], "untrained": untrained, **progress}
    if "trained_parts" in checkpoint:
        info["trained_parts"] = checkpoint["trained_parts"]
    return info


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load ``weights`` into ``module``.

    Args:
      where: name of the file, for the error message.
    Raises:
      ValueError: if names or shapes differ; the message contains torch's list.
    """
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as e:
        problems = " ".join(str(e).split())
        raise ValueError(f"{where}: weights do not fit the model: {problems}") from e
