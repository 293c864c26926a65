"""Measure how time and memory of a training step grow with batch, length and model.

    python test/bench/scaling.py [--axes batch length size] [--autocast bf16] ...

One axis varies at a time:

- batch: 25 to 400 s of audio in utterances of 5 s,
- length: utterances of 1 to 30 s in batches of 60 s,
- size: models of 1 to 65 million parameters, batches of 10 s.

Each point runs in its own process.  It measures the seconds of the fastest step and the
growth of memory from before the model is built to the peak.  The exponent of an axis is
the slope of a least-squares line through log(value) over log(x); 1 is proportional.
Prints one JSON object and a Markdown table.  Not collected by pytest.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence

import side_by_side
import torch
import train_step

from icefall_kd import FBANK_SHIFT
from icefall_kd.core.config import ModelConfig, ZipformerConfig
from icefall_kd.core.cpu import tune_cpu

BATCHES = (25.0, 50.0, 100.0, 200.0, 400.0)  # s
LENGTHS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)  # s
FIXED_LENGTH, FIXED_BATCH, SIZE_BATCH = 5.0, 60.0, 10.0  # s
TOKENS_PER_SECOND = 4
# Million parameters -> channels, layers and feed-forward widths of the stacks; the last
# two are the published small and medium models.
SIZES: dict[str, Sequence[Sequence[int]]] = {
    "1": ((48, 64, 96, 64), (1, 1, 1, 1), (96, 128, 192, 128)),
    "3": ((96, 128, 160, 128), (1, 1, 2, 1), (192, 256, 320, 256)),
    "7": ((128, 192, 256, 192), (1, 2, 2, 1), (256, 384, 512, 384)),
    "23": ((192,) + (256,) * 5, (2,) * 6, (512,) + (768,) * 5),
    "65": (
        (192, 256, 384, 512, 384, 256),
        (2, 2, 3, 4, 3, 2),
        (512, 768, 1024, 1536, 1024, 768),
    ),
}
MEASURED = ("cpu_seconds", "seconds", "megabytes")
Point = dict[str, object]


def parse() -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    p.add_argument("--points", type=int, help="per axis (default: all)")
    p.add_argument("--rounds", type=int, default=3, help="timed steps per point")
    p.add_argument("--threads", type=int, default=1, help="torch threads")
    p.add_argument("--autocast", choices=["none", "bf16"], default="none")
    p.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    return p.parse_args()


def sized_model(size: str) -> ModelConfig:
    """Return a model of about ``size`` million parameters."""
    dims, layers, widths = SIZES[size]
    six = len(dims) == 6
    encoder = ZipformerConfig(
        downsampling_factor=(1, 2, 4, 8, 4, 2) if six else (1, 2, 4, 2),
        num_encoder_layers=layers,
        encoder_dim=dims,
        encoder_unmasked_dim=tuple(min(d, 192) for d in dims),
        feedforward_dim=widths,
        num_heads=(4, 4, 4, 8, 4, 4) if six else (4,),
        query_head_dim=(32,) if six else (16,),
        cnn_module_kernel=(31, 31, 15, 15, 15, 31) if six else (31, 31, 15, 31),
    )
    return ModelConfig(encoder=encoder, vocab_size=150, decoder_dim=256, joiner_dim=256)


def batch_points() -> list[Point]:
    """Return the points of growing batches."""
    return [dict(x=s, batch=s, length=FIXED_LENGTH, size="3") for s in BATCHES]


def length_points() -> list[Point]:
    """Return the points of growing utterances."""
    return [dict(x=s, batch=FIXED_BATCH, length=s, size="3") for s in LENGTHS]


def size_points() -> list[Point]:
    """Return the points of growing models; x is set after the measurement."""
    return [dict(x=0, batch=SIZE_BATCH, length=FIXED_LENGTH, size=s) for s in SIZES]


AXES = {"batch": batch_points, "length": length_points, "size": size_points}
UNITS = {"batch": "s a batch", "length": "s an utterance", "size": "M parameters"}


def measure_point(args: argparse.Namespace) -> dict[str, float]:
    """Return the time of the fastest step and the peak memory of this process."""
    tune_cpu()
    torch.set_num_threads(args.threads)
    point = args.point
    frames = round(point["length"] / FBANK_SHIFT)
    options = argparse.Namespace(
        batch=round(point["batch"] / point["length"]),
        frames=frames,
        tokens=max(1, round(point["length"] * TOKENS_PER_SECOND)),
        autocast=args.autocast,
        device="cpu",
        seed=0,
        batch_count=2000.0,
        vary=False,
    )
    base = side_by_side.peak_megabytes("cpu")
    model, _, step = train_step.build(options, "ours", sized_model(point["size"]))
    taken = [side_by_side.timed(step, base, "cpu") for _ in range(args.rounds + 1)]
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    return {
        "parameters": round(parameters, 2),
        "cpu_seconds": round(min(t["cpu_seconds"] for t in taken[1:]), 4),
        "seconds": round(min(t["seconds"] for t in taken[1:]), 4),
        "megabytes": round(taken[-1]["megabytes"]),
    }


def run_point(args: argparse.Namespace, point: Point) -> Point:
    """Measure a point in a new process, and return it with the results."""
    command = [sys.executable, *sys.argv, "--point", json.dumps(point)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = {**point, **json.loads(done.stdout)}
    if not found["x"]:
        found["x"] = found["parameters"]
    return found


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the least-squares slope of log y over log x."""
    lx, ly = [math.log(x) for x in xs], [math.log(max(y, 1e-9)) for y in ys]
    mx, my = sum(lx) / len(lx), sum(ly) / len(ly)
    spread = sum((a - mx) ** 2 for a in lx)
    return sum((a - mx) * (b - my) for a, b in zip(lx, ly)) / spread


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Return the points and exponents of each axis."""
    axes = {}
    for axis in args.axes:
        points = [run_point(args, point) for point in AXES[axis]()[: args.points]]
        axes[axis] = {"unit": UNITS[axis], "points": points}
        if len(points) > 1:
            xs = [p["x"] for p in points]
            axes[axis]["exponents"] = {
                key: round(exponent(xs, [p[key] for p in points]), 2)
                for key in MEASURED
            }
    return {"axes": axes, "settings": side_by_side.settings(args)}


def tables(result: dict[str, object]) -> str:
    """Return the result as a Markdown table."""
    rows = []
    for name, axis in result["axes"].items():
        for p in axis["points"]:
            speed = round(p["batch"] / p["cpu_seconds"], 1)
            row = {"axis": name, "x": f"{p['x']:g} {axis['unit']}"}
            row.update({"CPU s a step": p["cpu_seconds"], "audio s a CPU s": speed})
            rows.append({**row, "MiB": p["megabytes"]})
        found = axis.get("exponents")
        if found:
            row = {
                "axis": name,
                "x": "**exponent**",
                "CPU s a step": found[MEASURED[0]],
            }
            rows.append({**row, "audio s a CPU s": "", "MiB": found["megabytes"]})
    return side_by_side.markdown_table(rows)


def main() -> None:
    """Run the benchmark, or measure one point in this process."""
    args = parse()
    if args.point:
        print(json.dumps(measure_point(args)))
        return
    result = measure(args)
    print(json.dumps(result))
    print(f"\n{tables(result)}")


if __name__ == "__main__":
    main()
