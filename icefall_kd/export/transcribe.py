"""Sets and audio files through sherpa-onnx."""

import time
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Optional, Tuple

from lhotse import Recording
from lhotse.cut import Cut
from tqdm import tqdm

from icefall_kd import SAMPLE_RATE
from icefall_kd.data.tokens import Tokenizer, word_spans
from icefall_kd.data.waves import load_wave
from icefall_kd.decoding import DecodeOptions
from icefall_kd.decoding.hotwords import Hotwords, read_hotwords
from icefall_kd.decoding.recognise import reference
from icefall_kd.decoding.scoring import Recognition
from icefall_kd.decoding.setting import Chunking, setting_facts, setting_name
from icefall_kd.export.files import ModelFiles
from icefall_kd.export.sherpa import SherpaRecogniser, sherpa_version


def suffix(options: DecodeOptions, chunking: Optional[Chunking], int8: bool) -> str:
    """Return the part of the result files' names that says how it was transcribed."""
    return f"sherpa-{setting_name(options, chunking)}{'-int8' if int8 else ''}"


def facts(
    model_files: ModelFiles, options: DecodeOptions, threads: int, int8: bool
) -> Dict:
    """Return what a result JSON says of the model and the engine.

    Raises:
      FileNotFoundError, ValueError: as :meth:`ModelFiles.read_info`.
    """
    info = model_files.read_info()
    entry = info["encoders"].get(model_files.float32.encoder.name, {})
    return {
        "engine": f"sherpa-onnx {sherpa_version()}",
        **setting_facts(options, model_files.chunking),
        "int8": int8,
        "checkpoint": info["checkpoint"],
        "checkpoint_sha256": info["checkpoint_sha256"],
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


def cuts(
    model_files: ModelFiles,
    cut_set: Iterable[Cut],
    options: DecodeOptions,
    threads: int,
) -> Tuple[List[Recognition], float]:
    """Transcribe cuts one after another.

    Returns:
      the recognitions, and the real-time factor: seconds of features, model and search
      a second of audio (without the tail that streams are given).
    """
    sherpa = SherpaRecogniser(model_files, options, threads)
    found, seconds, audio = [], 0.0, 0.0
    for cut in tqdm(cut_set, desc="sherpa-onnx", unit="cut"):
        wave = load_wave(cut).numpy()
        start = time.perf_counter()
        hyp = sherpa.decode([wave])[0]
        seconds += time.perf_counter() - start
        audio += len(wave) / SAMPLE_RATE
        frames = [hyp.timestamps[last] for _, last in word_spans(hyp.pieces)]
        found.append(Recognition(cut.id, reference(cut), hyp.text.split(), frames))
    return found, seconds / max(audio, 1e-9)


def files(
    model_files: ModelFiles, paths: Iterable[Path], options: DecodeOptions, threads: int
) -> Iterator[Tuple[Path, str]]:
    """Transcribe audio files of any rate, the first channel of each.

    Yields:
      path and text.
    Raises:
      FileNotFoundError: if a file is missing.
    """
    paths = list(paths)
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such audio file")
    model_files.read_info()
    sherpa = SherpaRecogniser(model_files, options, threads)
    for path in paths:
        recording = Recording.from_file(path).resample(SAMPLE_RATE)
        yield path, sherpa.decode([recording.load_audio(channels=0)[0]])[0].text
