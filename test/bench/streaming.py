"""Measure real-time factor and latency of streaming recognition in ONNX Runtime.

    python test/bench/streaming.py [--model-dir exp/export] [--chunks-ms 160 320] ...

Reads the streaming encoders in folders of ``bin.export``.  Without ``--model-dir``, it
first exports a student of the recipe with random weights for each chunk size.  This
student emits a token in almost every frame, so its predictor runs more often than that
of a trained one.  One stream, greedy search; the models alternate on the same machine.
The latency of a chunk is the time from its features to its tokens, without the duration
of its audio.  On a shared machine, compare the CPU time.  Prints a JSON object and a
Markdown table.  Not collected by pytest.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import side_by_side
import torch
import yaml

from icefall_kd import FBANK_SHIFT, NUM_MEL_BINS
from icefall_kd.core.config import ModelConfig, from_dict
from icefall_kd.decoding import DecodeOptions
from icefall_kd.decoding.streaming import hop_frames, window_frames
from icefall_kd.export.files import ModelFiles
from icefall_kd.export.onnx import export_model
from icefall_kd.export.ort import OrtTransducer
from icefall_kd.export.quantize import quantize_model
from icefall_kd.recognition.options import Chunking
from icefall_kd.transducer.model import build_model

RECIPE = Path(__file__).resolve().parents[2] / "egs/asterisk/KD/conf"
CONFIGS = [RECIPE / f"{name}.yaml" for name in ("student", "unified", "finetune")]
MS_PER_FRAME = 20  # one 50 Hz frame


def parse() -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model-dir", type=Path, nargs="+", help="folders of bin.export")
    p.add_argument("--config", type=Path, nargs="+", default=CONFIGS, help="YAML")
    p.add_argument("--chunks-ms", type=int, nargs="+", default=[160, 320, 640])
    p.add_argument("--left-context", type=int, default=128, help="20 ms frames")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument(
        "--seconds", type=float, default=30.0, help="seconds of audio in a turn"
    )
    p.add_argument("--rounds", type=int, default=4, help="turns of each model")
    return p.parse_args()


def student_config(paths: Sequence[Path]) -> ModelConfig:
    """Return the model of YAML files; later files override earlier ones."""
    merged: dict[str, object] = {}
    for path in paths:
        model = yaml.safe_load(path.read_text(encoding="utf-8")).get("model", {})
        encoder = {**merged.get("encoder", {}), **model.get("encoder", {})}
        merged = {**merged, **model, "encoder": encoder}
    return from_dict(ModelConfig, merged)


def export_student(args: argparse.Namespace, folder: Path) -> None:
    """Export a student with random weights for each chunk size, float32 and int8."""
    torch.manual_seed(0)
    model = build_model(student_config(args.config)).eval()
    chunkings = [
        Chunking(ms // MS_PER_FRAME, args.left_context) for ms in args.chunks_ms
    ]
    (folder / "tokens.txt").write_text("<blk> 0\n", encoding="utf-8")
    for files in export_model(model, folder, chunkings):
        quantize_model(files)


def find_encoders(folder: Path, args: argparse.Namespace) -> list[ModelFiles]:
    """Return the streaming models in a folder with the requested chunk sizes.

    Raises:
      FileNotFoundError: if the folder has no such model.
    """
    found = []
    for path in sorted(folder.glob("encoder-streaming-*.onnx")):
        chunk, left = map(int, re.findall(r"-(?:chunk|left)-(\d+)", path.name))
        if chunk * MS_PER_FRAME in args.chunks_ms:
            int8 = path.name.endswith(".int8.onnx")
            found.append(
                ModelFiles.in_folder(folder, Chunking(chunk, left), int8).check_exist()
            )
    if not found:
        raise FileNotFoundError(
            f"{folder}: no streaming encoder with chunks of {args.chunks_ms} ms"
        )
    return found


def stream(engine: OrtTransducer, features: np.ndarray) -> list[dict[str, float]]:
    """Return wall-clock and processor time of each chunk in s."""
    times = []
    chunks = engine.encode_chunks([features])
    while True:
        clock, processor = time.perf_counter(), time.process_time()
        chunk = next(chunks, None)
        if chunk is None:
            return times
        engine.search(chunk[0])
        seconds = {"seconds": time.perf_counter() - clock}
        times.append({**seconds, "cpu_seconds": time.process_time() - processor})


def measure(
    models: Sequence[ModelFiles], args: argparse.Namespace
) -> list[list[dict[str, float]]]:
    """Return the times of each chunk for each model; the first turn is a warm-up."""
    engines = [OrtTransducer(m, DecodeOptions(), args.threads) for m in models]
    generator = np.random.default_rng(0)
    times: list[list[dict[str, float]]] = [[] for _ in models]
    for turn in range(args.rounds + 1):
        for engine, chunks in zip(engines, times):
            chunk_size = engine.chunking.chunk_size
            frames = window_frames(chunk_size) + 1 + round(args.seconds / FBANK_SHIFT)
            shape = (frames, NUM_MEL_BINS)
            features = generator.standard_normal(shape, dtype=np.float32) - 6.0
            found = stream(engine, features)
            if turn:
                chunks.extend(found)
    return times


def summarise(
    files: ModelFiles, chunks: Sequence[dict[str, float]]
) -> dict[str, object]:
    """Return the row of a model in the table."""
    audio = hop_frames(files.chunking.chunk_size) * FBANK_SHIFT
    clock = np.array([chunk["seconds"] for chunk in chunks])
    processor = np.array([chunk["cpu_seconds"] for chunk in chunks])
    return {
        "model": files.encoder.parent.name,
        "chunk ms": round(1000 * audio),
        "weights": "int8" if ".int8." in files.encoder.name else "float32",
        "encoder MB": round(files.encoder.stat().st_size / 1e6, 1),
        "real-time factor": round(float(clock.mean() / audio), 4),
        "of CPU": round(float(processor.mean() / audio), 4),
        "median ms": round(float(1000 * np.median(clock)), 2),
        "99 % ms": round(float(1000 * np.percentile(clock, 99)), 2),
    }


def main() -> None:
    """Run the benchmark."""
    args = parse()
    with tempfile.TemporaryDirectory() as scratch:
        folders = args.model_dir
        if not folders:
            folders = [Path(scratch) / "random"]
            folders[0].mkdir()
            export_student(args, folders[0])
        models = [files for folder in folders for files in find_encoders(folder, args)]
        models.sort(key=lambda m: (m.chunking.chunk_size, m.encoder.name))
        rows = [summarise(m, c) for m, c in zip(models, measure(models, args))]
    settings = {k: str(v) for k, v in side_by_side.settings(args).items()}
    print(json.dumps({"rows": rows, "settings": settings}))
    print(f"\n{side_by_side.markdown_table(rows)}")


if __name__ == "__main__":
    main()
