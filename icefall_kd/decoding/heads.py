"""The heads of a student, and which of its parts the searches over each read."""

from collections.abc import Mapping
from typing import Any

from torch import nn

HEADS = {"transducer": ("decoder", "joiner"), "ctc": ("ctc_output",)}
ENCODER = ("encoder_embed", "encoder")


def require_parts(model: nn.Module, head: str) -> None:
    """Raise ValueError if the model lacks a part of ``head``."""
    missing = [part for part in HEADS[head] if getattr(model, part, None) is None]
    if missing:
        raise ValueError(
            f"the model has no {head} head ({', '.join(missing)} is missing); train "
            f"one with terms.{head}.weight above 0, or use another head"
        )


def require_head(
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
        require_parts(model, head)
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
    return untrained - trained_parts(config["terms"])


def trained_parts(terms: Mapping[str, Any]) -> set:
    """Return the parts of a student that the terms of a saved config train."""
    from icefall_kd.distill.terms import TERMS

    parts: set = set()
    for name, options in terms.items():
        if not options or options.get("weight", 1.0) <= 0 or name not in TERMS:
            continue
        term = TERMS[name]
        by_options = getattr(term, "trains_with", None)
        parts.update(by_options(options) if by_options else term.trains)
    return parts


def count_parameters(model: nn.Module, head: str = "transducer") -> int:
    """Return the parameters that decoding by ``head`` uses, all others left out."""
    parts = [getattr(model, name) for name in (*ENCODER, *HEADS[head])]
    return sum(p.numel() for part in parts for p in part.parameters())
