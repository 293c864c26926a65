"""Time our code and icefall's in turn, and print tables.

Each model runs in its own process.  The processes take turns, A B A B, so that the load
of the machine affects both.  ``ratio`` is the reference's time over ours, of the
fastest and of the median turn.  On a busy machine, compare processor seconds (of all
threads) instead of seconds of the clock.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Callable

import torch

from icefall_kd import FBANK_SHIFT
from icefall_kd.core.config import ModelConfig, ZipformerConfig
from icefall_kd.core.cpu import tune_cpu

Turn = Callable[[], float]  # runs the work once and returns a computed value
Build = Callable[[argparse.Namespace, str], Turn]  # of "ours" or "reference"
Times = dict[str, list[dict[str, float]]]  # of each model, one entry for each turn


def add_arguments(p: argparse.ArgumentParser) -> None:
    """Add the options of all comparisons."""
    p.add_argument("--batch", type=int, default=32, help="utterances in a batch")
    p.add_argument(
        "--frames", type=int, default=300, help="fbank frames of each utterance"
    )
    p.add_argument("--threads", type=int, default=2, help="torch threads")
    p.add_argument(
        "--rounds", type=int, default=5, help="timed turns, after a warm-up turn"
    )
    p.add_argument("--autocast", choices=["none", "bf16"], default="none")
    p.add_argument("--frontend-channels", type=int, nargs=3, default=[8, 32, 128])
    p.add_argument("--convnext-expansion", type=int, default=3)
    p.add_argument("--causal", action="store_true", help="attention within chunks")
    p.add_argument("--device", default="cpu")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--reference", help="icefall checkout to compare with")
    p.add_argument(
        "--tune-reference",
        action="store_true",
        help="call tune_cpu for the reference too",
    )
    p.add_argument("--worker", choices=["ours", "reference"], help=argparse.SUPPRESS)
    p.add_argument(
        "--profile", action="store_true", help="print our operators to stderr"
    )


def model_config(args: argparse.Namespace) -> ModelConfig:
    """Return the shape of the measured model, 2.9 M parameters by default."""
    chunks = dict(
        causal=True, chunk_size=(16, 32, 64, -1), left_context_frames=(64, 128, -1)
    )
    encoder = ZipformerConfig(
        frontend_channels=tuple(args.frontend_channels),
        convnext_expansion=args.convnext_expansion,
        downsampling_factor=(1, 2, 4, 2),
        num_encoder_layers=(1, 1, 2, 1),
        encoder_dim=(96, 128, 160, 128),
        encoder_unmasked_dim=(96, 128, 128, 128),
        feedforward_dim=(192, 256, 320, 256),
        num_heads=(4,),
        query_head_dim=(16,),
        pos_head_dim=(4,),
        value_head_dim=(12,),
        cnn_module_kernel=(31, 31, 15, 31),
        **(chunks if args.causal else {}),
    )
    return ModelConfig(encoder=encoder, vocab_size=150, decoder_dim=256, joiner_dim=256)


def autocast(args: argparse.Namespace) -> torch.autocast:
    """Return the autocast context of ``--autocast``."""
    kind = args.device.split(":")[0]
    return torch.autocast(kind, torch.bfloat16, enabled=args.autocast == "bf16")


def run(args: argparse.Namespace, build: Build) -> None:
    """Measure and print one JSON object, or run as a worker process."""
    if args.worker:
        serve(args, build)
    else:
        print(json.dumps(report(measure(args), args)))


def synchronise(device: str) -> None:
    """Wait until the device has finished."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_megabytes(device: str) -> float:
    """Return the peak memory of the process or the GPU, in MiB."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def serve(args: argparse.Namespace, build: Build) -> None:
    """Run a turn for each line of stdin; write its times as a line of JSON."""
    if args.worker == "ours" or args.tune_reference:
        tune_cpu()
    torch.set_num_threads(args.threads)
    turn = build(args, args.worker)
    base = peak_megabytes(args.device)
    if args.profile and args.worker == "ours":
        profile(turn)
    for _ in sys.stdin:
        print(json.dumps(timed(turn, base, args.device)), flush=True)


def timed(turn: Turn, base: float, device: str) -> dict[str, float]:
    """Run a turn; return its seconds, its memory above ``base`` MiB and its value."""
    synchronise(device)
    clock, processor = time.perf_counter(), time.process_time()
    value = turn()
    synchronise(device)
    return {
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - processor,
        "megabytes": peak_megabytes(device) - base,
        "value": value,
    }


def profile(turn: Turn) -> None:
    """Print the operators of a turn to stderr, the slowest first."""
    for _ in range(3):  # warm-up
        turn()
    with torch.profiler.profile() as profiler:
        turn()
    averages = profiler.key_averages()
    print(averages.table("self_cpu_time_total", row_limit=30), file=sys.stderr)


def measure(args: argparse.Namespace) -> Times:
    """Return the times of the turns of each model."""
    names = ["ours", "reference"] if args.reference else ["ours"]
    workers = {
        name: subprocess.Popen(
            [sys.executable, *sys.argv, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    }
    taken: Times = {name: [] for name in names}
    for _ in range(args.rounds + 1):
        for name, worker in workers.items():
            worker.stdin.write("go\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            if not line:
                raise SystemExit(f"the worker process of {name} failed, see above")
            taken[name].append(json.loads(line))
            if not taken[name][-1]["value"] == taken[name][-1]["value"]:
                raise SystemExit(f"{name}: the computed value is NaN")
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return {name: turns[1:] for name, turns in taken.items()}  # no warm-up


def report(taken: Times, args: argparse.Namespace) -> dict[str, object]:
    """Return times, memory and ratios."""
    audio = args.batch * args.frames * FBANK_SHIFT
    result: dict[str, dict[str, float]] = {}
    for name, turns in taken.items():
        result[name] = {}
        for clock in ("seconds", "cpu_seconds"):
            values = [turn[clock] for turn in turns]
            result[name][f"{clock}_min"] = round(min(values), 4)
            result[name][f"{clock}_median"] = round(statistics.median(values), 4)
        result[name]["times_real_time"] = round(audio / result[name]["seconds_min"], 1)
        result[name]["megabytes"] = round(turns[-1]["megabytes"])
        result[name]["value"] = turns[-1]["value"]
    if "reference" in result:
        ours, theirs = result["ours"], result["reference"]
        result["ratio"] = {
            key: round(theirs[key] / ours[key], 2)
            for key in ours
            if "seconds" in key or "megabytes" in key
        }
    return {**result, "settings": settings(args)}


def settings(args: argparse.Namespace) -> dict[str, object]:
    """Return the options and versions of a measurement."""
    hidden = ("reference", "worker", "point")
    options = {k: v for k, v in vars(args).items() if k not in hidden}
    return {**options, "torch": torch.__version__}


def markdown_table(rows: Sequence[dict[str, object]]) -> str:
    """Return rows with equal keys as a Markdown table; the keys are its head."""
    head = list(rows[0])
    lines: list[Sequence[str]] = [head, ["---"] * len(head)]
    lines += [[str(row[key]) for key in head] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
