"""Command-line options of decoding, and their entries in result names and JSON."""

from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from torch import nn

from icefall_kd.core.cli import (
    even_int,
    non_negative_float,
    positive_float,
    positive_int,
)
from icefall_kd.decoding import DECODERS, DecodeOptions, get_search_class
from icefall_kd.decoding.streaming import tail_padding


@dataclass(frozen=True)
class Chunking:
    """Chunk size and left context of streaming, in 50 Hz frames (20 ms).

    ``None`` in place of a chunking means full context.
    """

    chunk_size: int
    left_context: int

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        chunk_size: Optional[int] = None,
        left_context: Optional[int] = None,
        where: str = "the model",
    ) -> "Chunking":
        """Return a chunking for a model.

        The defaults are the first chunk size and left context in the model's
        configuration that are not -1 (unlimited), as in validation during training.

        Args:
          model: causal ``AsrModel``.
          chunk_size, left_context: in 50 Hz frames; None for the default.
          where: name of the model in error messages.
        Raises:
          ValueError: if the model is not causal, or a default is missing.
        """
        config = model.encoder.config
        if not model.encoder.causal:
            raise ValueError(
                f"{where}: the model is not causal and cannot stream; train with "
                "encoder.causal=true or omit --streaming"
            )
        return cls(
            chunk_size or _first_limited(config.chunk_size, "--chunk-size", where),
            left_context
            or _first_limited(config.left_context_frames, "--left-context", where),
        )


def _first_limited(values: Sequence[int], option: str, where: str) -> int:
    limited = [value for value in values if value > 0]
    if not limited:
        raise ValueError(
            f"{where}: the configuration has no limited {option[2:].replace('-', ' ')} "
            f"({', '.join(map(str, values))}); set {option}"
        )
    return limited[0]


def add_search_options(
    parser: ArgumentParser, methods: Iterable[str], default: str
) -> None:
    """Add --method, --beam, --blank-penalty and --graph to a command."""
    parser.add_argument(
        "--method",
        choices=sorted(methods),
        default=default,
        help="search method; icefall: --decoding-method",
    )
    parser.add_argument(
        "--beam",
        type=positive_int,
        default=4,
        help="hypotheses kept per frame in a beam search; icefall: --beam-size",
    )
    parser.add_argument(
        "--blank-penalty",
        type=non_negative_float,
        default=0.0,
        help="value in nats to subtract from the blank's score",
    )
    parser.add_argument(
        "--graph", type=Path, help="HLG.fst of bin.compile_hlg, for --method ctc_hlg"
    )


def add_chunk_options(parser: ArgumentParser, source: str) -> None:
    """Add --streaming, --chunk-size and --left-context to a command.

    Args:
      source: origin of the defaults, for the help text.
    """
    parser.add_argument(
        "--streaming", action="store_true", help="decode in chunks, with a causal model"
    )
    parser.add_argument(
        "--chunk-size",
        type=even_int,
        help=f"chunk size in frames of 20 ms (default: of the {source})",
    )
    parser.add_argument(
        "--left-context",
        type=positive_int,
        help="left context in frames of 20 ms; icefall: --left-context-frames "
        f"(default: of the {source})",
    )


def add_decoding_options(parser: ArgumentParser, source: str) -> None:
    """Add the options of search, hotwords, streaming and long audio to a command.

    Args:
      source: origin of the default chunk size and left context, for the help text.
    """
    add_search_options(parser, DECODERS, "greedy_search")
    parser.add_argument(
        "--hotwords",
        type=Path,
        help="text file of phrases that modified_beam_search prefers, one per line, "
        "optionally with a bonus in nats per token: 'PHRASE :2.5'",
    )
    parser.add_argument(
        "--hotwords-score",
        type=positive_float,
        default=1.5,
        help="bonus in nats per token, for lines without a bonus",
    )
    add_chunk_options(parser, source)
    parser.add_argument(
        "--max-utterance",
        type=float,
        default=DecodeOptions.max_utterance,
        help="maximum duration of a window in s; longer audio is split at pauses, "
        "except in streaming",
    )


def result_suffix(options: DecodeOptions, chunking: Optional[Chunking]) -> str:
    """Return the part of the result files' names that describes search and chunks."""
    suffix = options.method
    if get_search_class(options.method).uses_beam:
        suffix += f"-beam-{options.beam}"
    if options.blank_penalty:
        suffix += f"-blank-penalty-{options.blank_penalty:g}"
    if options.hotwords is not None:
        suffix += f"-hotwords-{options.hotwords.score:g}-{options.hotwords.sha256[:8]}"
    if options.graph is not None:
        suffix += f"-{options.graph.sha256[:8]}"
    if chunking:
        suffix += f"-chunk-{chunking.chunk_size}-left-{chunking.left_context}"
    return suffix


def decoding_info(
    options: DecodeOptions, chunking: Optional[Chunking]
) -> dict[str, Any]:
    """Return the entries of a result JSON about search and streaming."""
    beam = options.beam if get_search_class(options.method).uses_beam else None
    hotwords, graph = options.hotwords, options.graph
    return {
        "method": options.method,
        "beam": beam,
        "blank_penalty": options.blank_penalty,
        "hotwords": hotwords and str(hotwords.path),
        "hotwords_score": hotwords and hotwords.score,
        "hotwords_sha256": hotwords and hotwords.sha256,
        "graph": graph and str(graph.path),
        "graph_sha256": graph and graph.sha256,
        "max_utterance": None if chunking else options.max_utterance,  # s
        "streaming": chunking is not None,
        "chunk_size": chunking and chunking.chunk_size,  # 20 ms frames
        "left_context": chunking and chunking.left_context,  # 20 ms frames
        "tail_padding": chunking and tail_padding(chunking.chunk_size),  # s
    }


def training_info(info: Mapping[str, Any]) -> Optional[dict[str, int]]:
    """Return "epoch", "avg" and "step" of a checkpoint, or None if it has none of them.

    Args:
      info: info of :func:`icefall_kd.transducer.checkpoint.load_model`.
    """
    found = {name: info[name] for name in ("epoch", "avg", "step") if name in info}
    return found or None
