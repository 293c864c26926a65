"""The heads of a student, and which of its parts the searches over each read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Optional, Union

import torch
from torch import Tensor, nn

from icefall_kd.core.config import ModelConfig, from_dict, rename_options, to_dict
from icefall_kd.core.files import explain_failed_write, write_atomically
from icefall_kd.core.weights import load_weights_only
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.transducer.icefall import build_icefall_model
from icefall_kd.transducer.model import AsrModel, build_model

HEADS = {"transducer": ("decoder", "joiner"), "ctc": ("ctc_output",)}
ENCODER = ("encoder_embed", "encoder")
# What the terms of a run trained, for checkpoints written without "trained_parts".
TRAINED_BY_TERM = {
    "transducer": ("decoder", "joiner", "simple_am_proj", "simple_lm_proj"),
    "ctc": ("ctc_output",),
    "inter_ctc": ("ctc_output",),
    "essence": ("ctc_output",),
    "lfmmi": ("ctc_output",),
    "one_best": ("decoder", "joiner"),
}


def check_parts(model: nn.Module, head: str) -> None:
    """Raise ValueError if the model lacks a part of ``head``."""
    missing = [part for part in HEADS[head] if getattr(model, part, None) is None]
    if missing:
        raise ValueError(
            f"the model has no {head} head ({', '.join(missing)} is missing); train "
            f"one with terms.{head}.weight above 0, or use another head"
        )


def check_head(
    model: nn.Module, head: str, info: Mapping[str, Any], where: str
) -> None:
    """See that a student's head is there and was trained.

    Args:
      info: as a checkpoint holds it; where it has the ``config`` of the run, a head
        that neither that run trained nor the student that it began from is refused.
      where: for the message, whose head it is.
    Raises:
      ValueError: if it is not.
    """
    try:
        check_parts(model, head)
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from e
    untrained = set(HEADS[head]) & untrained_parts(info)
    if untrained:
        raise ValueError(
            f"{where}: no term of its training reached its {head} head "
            f"({', '.join(sorted(untrained))}), which is as random as it began; train "
            f"with terms.{head}.weight above 0, or use another head"
        )


def untrained_parts(info: Mapping[str, Any]) -> set:
    """Return the parts of heads that are as random as they began; none if unknown.

    Args:
      info: as a checkpoint holds it.
    """
    config = info.get("config") or {}
    if "terms" not in config:
        return set()
    untrained = {part for parts in HEADS.values() for part in parts}
    if config.get("init_model"):
        untrained = set(info.get("untrained") or ())
    return untrained - trained_parts(info)


def trained_parts(info: Mapping[str, Any]) -> set:
    """Return the parts of a student, without the encoder, that its run trained.

    Args:
      info: of a checkpoint; one without "trained_parts" lists its terms in "config".
    """
    if "trained_parts" in info:
        return set(info["trained_parts"])
    parts: set = set()
    for name, options in info["config"]["terms"].items():
        if not options or options.get("weight", 1.0) <= 0:
            continue
        if name != "inter_ctc" or options.get("final", True):
            parts.update(TRAINED_BY_TERM.get(name, ()))
    return parts


def count_parameters(model: nn.Module, head: str = "transducer") -> int:
    """Return the parameters that decoding by ``head`` uses, all others left out."""
    parts = [getattr(model, name) for name in (*ENCODER, *HEADS[head])]
    return sum(p.numel() for part in parts for p in part.parameters())


Pathlike = Union[str, Path]


def save_checkpoint(path: Pathlike, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
      OSError: if it cannot be written; the file of that name is what it was.
    """
    remedy = "make room; what was written before is whole, and training goes on there"
    with explain_failed_write(path, remedy), write_atomically(path) as aside:
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
    if "model_config" in checkpoint:
        options = rename_options(checkpoint["model_config"], "model.")
        checkpoint["model_config"] = options
    for holder in (checkpoint, checkpoint.get("info") or {}):
        if holder.get("config"):
            holder["config"] = rename_options(holder["config"])
    return checkpoint


def pack_bytes(data: Optional[bytes]) -> Optional[Tensor]:
    """Return bytes as a uint8 tensor, which every torch loads safely."""
    return None if data is None else torch.tensor(list(data), dtype=torch.uint8)


def unpack_bytes(data: Optional[Tensor]) -> Optional[bytes]:
    """Undo :func:`pack_bytes`."""
    return None if data is None else bytes(data.tolist())


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
            model, weights = build_icefall_model(checkpoint, heads or {}, needed)
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
    info = {"config": checkpoint["config"], "untrained": untrained, **progress}
    if "trained_parts" in checkpoint:
        info["trained_parts"] = checkpoint["trained_parts"]
    return info


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
