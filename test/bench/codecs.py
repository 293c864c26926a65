"""Compare the codecs of embeddings: bytes, error and speed.

    OMP_NUM_THREADS=1 python test/bench/codecs.py --train-dir data/shar/train \\
        --shar-dir data/shar/dev --field whisper_base [--codecs int8 pq32 pq16 mvq8]

Both Shar folders have the field as fp16, the reference.  Each codec is trained on
random cuts of the first folder and measured on the second, cut by cut, on one thread.
Prints JSON and a Markdown table:

- error: |x' - x| / |x| over all frames;
- normalised error: the same after normalising each dimension with the mean and standard
  deviation of the training frames, as the embedding term compares frames; a constant
  prediction of the mean has 1;
- cosine: mean over the frames, normalised as above;
- encode, decode: seconds of audio per second of CPU time, the best of --rounds.

Not collected by pytest.
"""

import argparse
import json
import logging
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from side_by_side import markdown_table

from icefall_kd.core.cpu import tune_cpu
from icefall_kd.fields.codecs import Codec, find_codec, train_codec
from icefall_kd.fields.codecs.base import mean_and_std
from icefall_kd.fields.codecs.storage import load_codec
from icefall_kd.fields.format import load_field_info
from icefall_kd.fields.reader import load_field, open_shar


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--train-dir", required=True, help="Shar folder to train on")
    add("--shar-dir", required=True, help="Shar folder to measure on")
    add("--field", required=True)
    add("--codecs", nargs="+", default=["fp16", "int8", "pq32", "pq16"])
    add("--frames", type=int, default=20_000, help="training frames")
    add("--mvq-iterations", type=int, default=1000, help="training iterations of mvq")
    add("--rounds", type=int, default=3, help="measurements of the decoding speed")
    add("--limit", type=int, default=10**9, help="cuts to measure on")
    return parser.parse_args()


def read_arrays(shar_dir: str, field: str) -> list[np.ndarray]:
    """Return the frames of every cut, (T, D) float32."""
    codec = load_codec(shar_dir, load_field_info(shar_dir, field))
    return [load_field(cut, field, codec) for cut in open_shar(shar_dir, [field])]


def draw_frames(arrays: list[np.ndarray], num_frames: int) -> np.ndarray:
    """Return the frames of random arrays, at least ``num_frames`` if there are."""
    arrays = random.Random(0).sample(arrays, len(arrays))
    ends = np.cumsum([len(a) for a in arrays])
    return np.concatenate(arrays[: int(np.searchsorted(ends, num_frames)) + 1])


def best_time(call: Callable[[], Any], rounds: int) -> float:
    """Return the shortest CPU time of ``call`` in seconds."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


def measure(
    codec: Codec,
    arrays: list[np.ndarray],
    mean: np.ndarray,
    std: np.ndarray,
    frame_shift: float,
    rounds: int,
) -> dict[str, float]:
    """Return errors and speeds of one codec."""
    stored: list[np.ndarray] = []
    # One round only: mvq needs 0.3 s per second of audio.
    encode = best_time(lambda: stored.extend(map(codec.encode, arrays)), 1)
    decode = best_time(lambda: [codec.decode(s) for s in stored], rounds)
    x = np.concatenate(arrays)
    decoded = np.concatenate([codec.decode(s) for s in stored])
    a, b = (x - mean) / std, (decoded - mean) / std
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    seconds = len(x) * frame_shift
    return {
        "error": float(np.linalg.norm(decoded - x) / np.linalg.norm(x)),
        "normalised error": float(np.linalg.norm(b - a) / np.linalg.norm(a)),
        "cosine": float(((a * b).sum(axis=1) / norms).mean()),
        "encode": seconds / encode,
        "decode": seconds / decode,
    }


def main() -> None:
    """Run the comparison."""
    args = parse_args()
    tune_cpu()  # as bin.train, which decodes the fields
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    info = load_field_info(args.shar_dir, args.field)
    frames = draw_frames(read_arrays(args.train_dir, args.field), args.frames)
    arrays = read_arrays(args.shar_dir, args.field)[: args.limit]
    mean, std = mean_and_std(frames)
    results = []
    for spec in args.codecs:
        cls, _ = find_codec(spec)
        options = {"iterations": args.mvq_iterations} if cls.name == "mvq" else {}
        start = time.process_time()
        codec = train_codec(spec, frames, **options)
        results.append(
            {
                "codec": spec,
                "bytes per frame": codec.bytes_per_frame(info.dim),
                "trained on": len(frames) if cls.trained else 0,
                "training": time.process_time() - start if cls.trained else 0.0,
                **measure(codec, arrays, mean, std, info.frame_shift, args.rounds),
            }
        )
        print(json.dumps(results[-1]), file=sys.stderr)
    seconds = sum(map(len, arrays)) * info.frame_shift
    report = {"field": args.field, "dim": info.dim, "cuts": len(arrays)}
    print(json.dumps({**report, "seconds": seconds, "codecs": results}, indent=2))
    print(markdown_table([format_row(r) for r in results]))


def format_row(result: dict[str, Any]) -> dict[str, str]:
    """Return the cells of a result."""
    trained = result["trained on"]
    return {
        "codec": result["codec"],
        "bytes per frame": f"{result['bytes per frame']:.0f}",
        "error": f"{result['error']:.4f}",
        "normalised error": f"{result['normalised error']:.4f}",
        "cosine": f"{result['cosine']:.4f}",
        "encode": f"{result['encode']:,.0f}x",
        "decode": f"{result['decode']:,.0f}x",
        "trained on": f"{trained:,} frames, {result['training']:.0f} s"
        if trained
        else "",
    }


if __name__ == "__main__":
    main()
