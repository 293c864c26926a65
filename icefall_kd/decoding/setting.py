"""How a set was decoded: in the names of the result files and inside them."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from icefall_kd.decoding import DecodeOptions, search_class
from icefall_kd.decoding.streaming import tail_padding
from icefall_kd.io import Pathlike, read_json


@dataclass(frozen=True)
class Chunking:
    """Chunk and left context of streaming, in 50 Hz frames (20 ms)."""

    chunk_size: int = 16
    left_context: int = 64


def setting_name(options: DecodeOptions, chunking: Optional[Chunking]) -> str:
    """Return the part of the result files' names that says how it was decoded."""
    name = options.method
    if search_class(options.method).uses_beam:
        name += f"-beam-{options.beam}"
    if options.blank_penalty:
        name += f"-blank-penalty-{options.blank_penalty:g}"
    if options.hotwords is not None:
        name += f"-hotwords-{options.hotwords.score:g}-{options.hotwords.sha256[:8]}"
    if chunking:
        name += f"-chunk-{chunking.chunk_size}-left-{chunking.left_context}"
    return name


def setting_facts(options: DecodeOptions, chunking: Optional[Chunking]) -> dict:
    """Return what a result JSON says of the search and the chunks."""
    beam = options.beam if search_class(options.method).uses_beam else None
    hotwords = options.hotwords
    return {
        "method": options.method,
        "beam": beam,
        "blank_penalty": options.blank_penalty,
        "hotwords": hotwords and str(hotwords.path),
        "hotwords_score": hotwords and hotwords.score,
        "max_utterance": None if chunking else options.max_utterance,  # s
        "streaming": chunking is not None,
        "chunk_size": chunking and chunking.chunk_size,  # 20 ms frames
        "left_context": chunking and chunking.left_context,  # 20 ms frames
        "tail_padding": chunking and tail_padding(chunking.chunk_size),  # s
    }


def kept_result(
    path: Pathlike, digest: str, force: bool, alignment: Optional[str] = None
) -> Optional[dict]:
    """Return the result at ``path`` if it is of the checkpoint with this digest.

    Args:
      alignment: digest of the one that it must be measured against; None: of any or
        none.
    """
    if force or not Path(path).exists():
        return None
    result = read_json(path)
    if result.get("checkpoint_sha256") != digest:
        return None
    if alignment is not None and result.get("alignment_sha256") != alignment:
        return None
    logging.info("%s is of this checkpoint, kept; --force redoes it", path)
    return result
