"""Sets and audio files through sherpa-onnx."""

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
from icefall_kd.decoding import DecodeOptions
from icefall_kd.decoding.hotwords import Hotwords, read_hotwords
from icefall_kd.export.files import ModelFiles
from icefall_kd.export.sherpa import SherpaRecogniser, sherpa_version
from icefall_kd.recognition.long_audio import cut_windows
from icefall_kd.recognition.options import Chunking, decoding_info, result_suffix
from icefall_kd.recognition.recognise import reference_words
from icefall_kd.recognition.scoring import Recognition


def suffix(options: DecodeOptions, chunking: Optional[Chunking], int8: bool) -> str:
    """Return the part of the result files' names that says how it was transcribed."""
    return f"sherpa-{result_suffix(options, chunking)}{'-int8' if int8 else ''}"


def facts(
    model_files: ModelFiles, options: DecodeOptions, threads: int, int8: bool
) -> dict:
    """Return what a result JSON says of the model and the engine.

    Raises:
      FileNotFoundError, ValueError: as :meth:`ModelFiles.read_info`.
    """
    info = model_files.read_info()
    entry = info["encoders"].get(model_files.float32.encoder.name, {})
    return {
        "engine": f"sherpa-onnx {sherpa_version()}",
        **decoding_info(options, model_files.chunking),
        "int8": int8,
        "checkpoint": info["checkpoint"],
        "checkpoint_sha256": info["checkpoint_sha256"],
        "training": info.get("training"),
        "export_sha256": model_files.sha256,
        "parameters": entry.get("parameters") or info["parameters"],
        "device": "cpu",
        "threads": threads,
    }


def hotwords(model_files: ModelFiles, path: Path, score: float) -> Hotwords:
    """Read a file of hotwords for exported files.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: as :meth:`ModelFiles.read_info` and
        :func:`icefall_kd.decoding.hotwords.read_hotwords`.
    """
    model_files.read_info()
    return read_hotwords(path, Tokenizer(model_files.bpe_model), score)


class _Blocks:
    """Iterate over the blocks of an utterance, and time their reading.

    Attributes:
      samples: read so far.
      seconds: that reading them took.
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
    """Return the words of an utterance, and the frame of each one's last token."""
    if sherpa.chunking:
        (hyp,) = sherpa.decode_streams([blocks])
        return _split_words(hyp.text, hyp.pieces, hyp.timestamps)
    words: list[str] = []
    frames: list[int] = []
    for window in cut_windows(blocks, options.max_utterance):
        (hyp,) = sherpa.decode([window.wave])
        kept, times = window.place_tokens(hyp.pieces, hyp.timestamps)
        pieces = [hyp.pieces[i] for i in kept]
        text = hyp.text
        if len(kept) < len(hyp.pieces):
            text = "".join(pieces).replace(WORD_START, " ")
        found = _split_words(text, pieces, times)
        words.extend(found[0])
        frames.extend(found[1])
    return words, frames


def _split_words(
    text: str, pieces: Sequence[str], frames: Sequence[int]
) -> tuple[list[str], list[int]]:
    """Return the words of a text, and the frame of each one's last token.

    Args:
      text: of sherpa-onnx, which drops the space before a special token.
      pieces, frames: symbol and frame of each token.
    """
    words, spans = text.split(), word_spans(pieces)
    if len(words) != len(spans):
        joined = ["".join(pieces[first : last + 1]) for first, last in spans]
        words = [word.replace(WORD_START, "") for word in joined]
    return words, [frames[last] for _, last in spans]


def cuts(
    model_files: ModelFiles,
    cut_set: Iterable[Cut],
    options: DecodeOptions,
    threads: int,
) -> tuple[list[Recognition], float]:
    """Transcribe cuts one after another.

    Returns:
      the recognitions, and the real-time factor: seconds of features, model and search
      a second of audio (without the tail that streams are given).
    """
    sherpa = SherpaRecogniser(model_files, options, threads)
    found, seconds, audio = [], 0.0, 0.0
    for cut in tqdm(cut_set, desc="sherpa-onnx", unit="cut"):
        blocks = _Blocks(block.numpy() for block in load_blocks(cut))
        start = time.perf_counter()
        words, frames = _transcribe(sherpa, blocks, options)
        seconds += time.perf_counter() - start - blocks.seconds
        audio += blocks.samples / SAMPLE_RATE
        found.append(Recognition(cut.id, reference_words(cut), words, frames))
    return found, seconds / max(audio, 1e-9)


def files(
    model_files: ModelFiles, paths: Iterable[Path], options: DecodeOptions, threads: int
) -> Iterator[tuple[Path, str, Optional[str]]]:
    """Transcribe audio files one after another, in flat memory.

    Several channels are averaged.

    Yields:
      path, text, and the reason why the file cannot be transcribed, else None.
    """
    model_files.read_info()
    sherpa = SherpaRecogniser(model_files, options, threads)
    for path in paths:
        try:
            words, _ = _transcribe(sherpa, read_blocks(path), options)
        except AudioError as e:
            yield path, "", str(e)
        else:
            yield path, " ".join(words), None
