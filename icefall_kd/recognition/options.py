"""How a set is decoded: options, names of the result files, entries of their JSON."""

import logging
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from torch import nn

from icefall_kd.core.cli import even_int, non_negative_float, positive_int
from icefall_kd.decoding import DecodeOptions, get_search_class
from icefall_kd.decoding.streaming import tail_padding

MANY_EMPTY = 0.1  # share of empty hypotheses from which on they are explained


@dataclass(frozen=True)
class Chunking:
    """Chunk and left context of streaming, in 50 Hz frames (20 ms)."""

    chunk_size: int
    left_context: int

    @classmethod
    def of(
        cls,
        model: nn.Module,
        chunk_size: Optional[int] = None,
        left_context: Optional[int] = None,
        where: str = "the model",
    ) -> "Chunking":
        """Return the chunks in which a student streams.

        What is not given is the student's own: the first chunk size and the first left
        context of its configuration that are not unlimited.  Training evaluates with
        these.

        Args:
          model: ``AsrModel``.
          chunk_size, left_context: in 50 Hz frames.
          where: the model's name in messages.
        Raises:
          ValueError: if the model is not causal, or has no such value.
        """
        if not model.encoder.causal:
            raise ValueError(
                f"{where} is not causal and cannot stream; train with "
                "encoder.causal=true or leave out --streaming"
            )
        encoder = model.encoder
        return cls(
            chunk_size or _own(encoder.config.chunk_size, "chunk-size", where),
            left_context
            or _own(encoder.config.left_context_frames, "left-context", where),
        )


def _own(values: Sequence[int], option: str, where: str) -> int:
    """Return the first limited one of ``values``, which the option replaces."""
    limited = [value for value in values if value > 0]
    if not limited:
        raise ValueError(
            f"{where} has no limited {option.replace('-', ' ')} in its configuration "
            f"({', '.join(map(str, values))}); give --{option}"
        )
    return limited[0]


def add_search(parser: ArgumentParser, methods: Iterable[str], default: str) -> None:
    """Add the options --method, --beam and --blank-penalty to a command."""
    parser.add_argument(
        "--method", choices=sorted(methods), default=default, help="search"
    )
    parser.add_argument(
        "--beam", type=positive_int, default=4, help="hypotheses kept in a beam search"
    )
    parser.add_argument(
        "--blank-penalty",
        type=non_negative_float,
        default=0.0,
        help="nats subtracted from the blank's score",
    )


def add_chunking(parser: ArgumentParser, owner: str) -> None:
    """Add the options --streaming, --chunk-size and --left-context to a command.

    Args:
      owner: what the defaults are taken from, for the help.
    """
    parser.add_argument("--streaming", action="store_true", help="chunk by chunk")
    parser.add_argument(
        "--chunk-size",
        type=even_int,
        help=f"in frames of 20 ms (default: that of the {owner})",
    )
    parser.add_argument(
        "--left-context",
        type=positive_int,
        help=f"in frames of 20 ms (default: that of the {owner})",
    )


def result_suffix(options: DecodeOptions, chunking: Optional[Chunking]) -> str:
    """Return the part of the result files' names that says how it was decoded."""
    name = options.method
    if get_search_class(options.method).uses_beam:
        name += f"-beam-{options.beam}"
    if options.blank_penalty:
        name += f"-blank-penalty-{options.blank_penalty:g}"
    if options.hotwords is not None:
        name += f"-hotwords-{options.hotwords.score:g}-{options.hotwords.sha256[:8]}"
    if chunking:
        name += f"-chunk-{chunking.chunk_size}-left-{chunking.left_context}"
    return name


def decoding_info(
    options: DecodeOptions, chunking: Optional[Chunking]
) -> dict[str, Any]:
    """Return the entries of a result JSON about the search and the chunks."""
    beam = options.beam if get_search_class(options.method).uses_beam else None
    hotwords = options.hotwords
    return {
        "method": options.method,
        "beam": beam,
        "blank_penalty": options.blank_penalty,
        "hotwords": hotwords and str(hotwords.path),
        "hotwords_score": hotwords and hotwords.score,
        "hotwords_sha256": hotwords and hotwords.sha256,
        "max_utterance": None if chunking else options.max_utterance,  # s
        "streaming": chunking is not None,
        "chunk_size": chunking and chunking.chunk_size,  # 20 ms frames
        "left_context": chunking and chunking.left_context,  # 20 ms frames
        "tail_padding": chunking and tail_padding(chunking.chunk_size),  # s
    }


def training_info(info: Mapping[str, Any]) -> Optional[dict[str, int]]:
    """Return epoch, averaged epochs and updates of a checkpoint.

    Args:
      info: of :func:`icefall_kd.transducer.checkpoint.load_model`.
    Returns:
      the entries among "epoch", "avg" and "step" that ``info`` has; None: it has none.
    """
    found = {name: info[name] for name in ("epoch", "avg", "step") if name in info}
    return found or None


def warn_of_empty(
    empty: int, count: int, method: Optional[str], engine: Optional[str] = None
) -> None:
    """Log why hypotheses are empty and what helps, where many are.

    Args:
      empty: number of empty hypotheses.
      count: number of all.
      method: of decoding.
      engine: that decoded; None: PyTorch.
    """
    if empty == 0 or empty < MANY_EMPTY * count:
        return
    is_ctc = (method or "").startswith("ctc")
    remedies = ["train it longer"]
    if not (is_ctc and (engine or "").startswith("sherpa")):  # which has none for CTC
        remedies.append("subtract --blank-penalty 1 to 3, a value chosen on a dev set")
    if not is_ctc:
        remedies.append(
            "decode the CTC head (--method ctc_greedy_search), which learns sooner, if "
            "terms.ctc trained it"
        )
    logging.warning(
        "%d of %d hypotheses are empty: the model prefers the blank in every frame. "
        "Remedies: %s",
        empty,
        count,
        "; ".join(remedies),
    )
