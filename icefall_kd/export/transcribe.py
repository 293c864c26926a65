"""Transcribe sets and audio files with sherpa-onnx."""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Optional

import numpy as np
from lhotse.cut import Cut
from tqdm import tqdm

from icefall_kd import SAMPLE_RATE
from icefall_kd.data.audio_files import AudioError, read_blocks
from icefall_kd.data.cuts import load_blocks
from icefall_kd.data.tokens import WORD_START, Tokenizer, word_spans
from icefall_kd.decoding import DecodeOptions, get_search_class
from icefall_kd.decoding.hlg import DecodingGraph, read_graph
from icefall_kd.decoding.hotwords import Hotwords, read_hotwords
from icefall_kd.export.files import ModelFiles
from icefall_kd.export.sherpa import SherpaRecogniser, sherpa_version
from icefall_kd.recognition.long_audio import split_windows
from icefall_kd.recognition.options import Chunking, decoding_info, result_suffix
from icefall_kd.recognition.recognise import reference_words
from icefall_kd.recognition.scoring import Recognition


def sherpa_suffix(
    options: DecodeOptions, chunking: Optional[Chunking], int8: bool
) -> str:
    """Return the part of the result files' names that describes the decoding."""
    return f"sherpa-{result_suffix(options, chunking)}{'-int8' if int8 else ''}"


def sherpa_info(
    files: ModelFiles, options: DecodeOptions, threads: int, int8: bool
) -> dict:
    """Return the entries of a result JSON about model, engine and search.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file was changed after the export.
    """
    info = files.read_info()
    encoder = info["encoders"].get(files.float32.encoder.name, {})
    return {
        "engine": f"sherpa-onnx {sherpa_version()}",
        **decoding_info(options, files.chunking),
        "int8": int8,
        "checkpoint": info["checkpoint"],
        "checkpoint_sha256": info["checkpoint_sha256"],
        "training": info.get("training"),
        "export_sha256": files.sha256,
        "parameters": encoder.get("parameters") or info["parameters"],
        "device": "cpu",
        "threads": threads,
    }


def read_export_hotwords(files: ModelFiles, path: Path, score: float) -> Hotwords:
    """Read a hotwords file with the tokenizer of exported files.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if an exported file was changed, or the hotwords file is invalid.
    """
    files.read_info()
    return read_hotwords(path, Tokenizer(files.bpe_model), score)


def read_export_graph(
    files: ModelFiles, method: str, path: Optional[Path]
) -> Optional[DecodingGraph]:
    """Read the graph of a method, by default the one in the export folder.

    Returns:
      None if no path is given and the method needs none.
    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if an exported file was changed, or the graph has other tokens.
    """
    if path is None and not get_search_class(method).uses_graph:
        return None
    files.read_info()
    return read_graph(path or files.graph, Tokenizer(files.bpe_model))


def transcribe_cuts(
    files: ModelFiles, cuts: Iterable[Cut], options: DecodeOptions, threads: int
) -> tuple[list[Recognition], float]:
    """Transcribe cuts one at a time.

    Returns:
      recognitions, and the real-time factor: seconds for features, model and search per
      second of audio, without tail padding and without reading the audio.
    """
    sherpa = SherpaRecogniser(files, options, threads)
    found, seconds, audio = [], 0.0, 0.0
    for cut in tqdm(cuts, desc="sherpa-onnx", unit="cut"):
        blocks = _TimedBlocks(block.numpy() for block in load_blocks(cut))
        start = time.perf_counter()
        words, frames = _transcribe(sherpa, blocks, options)
        seconds += time.perf_counter() - start - blocks.seconds
        audio += blocks.samples / SAMPLE_RATE
        found.append(Recognition(cut.id, reference_words(cut), words, frames))
    return found, seconds / max(audio, 1e-9)


def transcribe_files(
    files: ModelFiles, paths: Iterable[Path], options: DecodeOptions, threads: int
) -> Iterator[tuple[Path, str, Optional[str]]]:
    """Transcribe audio files one at a time, with constant memory.

    Channels are averaged.

    Yields:
      path, text, and an error message if the file cannot be read, else None.
    """
    files.read_info()
    sherpa = SherpaRecogniser(files, options, threads)
    for path in paths:
        try:
            words, _ = _transcribe(sherpa, read_blocks(path), options)
        except AudioError as e:
            yield path, "", str(e)
        else:
            yield path, " ".join(words), None


class _TimedBlocks:
    """An iterator over blocks that measures the time of reading them.

    Attributes:
      samples: number of samples read so far.
      seconds: time of reading them.
    """

    def __init__(self, blocks: Iterable[np.ndarray]) -> None:
        self.blocks = iter(blocks)
        self.samples, self.seconds = 0, 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        start = time.perf_counter()
        try:
            block = next(self.blocks)
        finally:
            self.seconds += time.perf_counter() - start
        self.samples += len(block)
        return block


def _transcribe(
    sherpa: SherpaRecogniser, blocks: Iterable[np.ndarray], options: DecodeOptions
) -> tuple[list[str], list[int]]:
    """Return the words of an utterance, and the frame of each word's last token."""
    if sherpa.chunking:
        (hyp,) = sherpa.decode_streams([blocks])
        return _split_words(hyp.text, hyp.pieces, hyp.timestamps)
    words: list[str] = []
    frames: list[int] = []
    for window in split_windows(blocks, options.max_utterance):
        (hyp,) = sherpa.decode([window.wave])
        selected, times = window.select_tokens(hyp.pieces, hyp.timestamps)
        pieces = [hyp.pieces[i] for i in selected]
        text = hyp.text
        if len(selected) < len(hyp.pieces):
            text = "".join(pieces).replace(WORD_START, " ")
        window_words, window_frames = _split_words(text, pieces, times)
        words.extend(window_words)
        frames.extend(window_frames)
    return words, frames


def _split_words(
    text: str, pieces: Sequence[str], frames: Sequence[int]
) -> tuple[list[str], list[int]]:
    """Return the words of a text, and the frame of each word's last token.

    Args:
      text: text of sherpa-onnx; it may lack the space before a special token.
      pieces, frames: symbol and frame of each token.
    """
    words, spans = text.split(), word_spans(pieces)
    if len(words) != len(spans):
        joined = ["".join(pieces[first : last + 1]) for first, last in spans]
        words = [word.replace(WORD_START, "") for word in joined]
    return words, [frames[last] for _, last in spans]
