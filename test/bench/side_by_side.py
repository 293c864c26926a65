"""Time something of ours beside the same of the reference recipe, in turn.

Each model runs in a process of its own and they take turns, A B A B, so that both see
the same machine.  ``ratio`` is the reference's time over ours, of the fastest and of
the median turns.  Processor seconds (all threads) are given beside those of the clock:
on a machine that others use they are what compares.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Callable

import torch

from icefall_kd import FBANK_SHIFT
from icefall_kd.core.config import ModelConfig, ZipformerConfig
from icefall_kd.core.cpu import tune_cpu

Turn = Callable[[], float]  # does the work once, returns a figure that it computed
Build = Callable[[argparse.Namespace, str], Turn]  # for "ours" or "reference"
Taken = dict[str, list[dict[str, float]]]  # of each model, one entry a turn


def add_arguments(p: argparse.ArgumentParser) -> None:
    """Add the options that all comparisons have."""
    p.add_argument("--batch", type=int, default=32, help="utterances")
    p.add_argument("--frames", type=int, default=300, help="fbank frames of each")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=5, help="timed turns, after one")
    p.add_argument("--autocast", choices=["none", "bf16"], default="none")
    p.add_argument("--frontend-channels", type=int, nargs=3, default=[8, 32, 128])
    p.add_argument("--convnext-expansion", type=int, default=3)
    p.add_argument("--causal", action="store_true", help="attention within chunks")
    p.add_argument("--device", default="cpu")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--reference", help="icefall checkout to measure beside ours")
    p.add_argument("--tune-reference", action="store_true", help="as ours is tuned")
    p.add_argument("--worker", choices=["ours", "reference"], help=argparse.SUPPRESS)
    p.add_argument("--profile", action="store_true", help="operators of ours to stderr")


def model_config(args: argparse.Namespace) -> ModelConfig:
    """Return the shape that is measured, 2.9 M parameters."""
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
    """Return the context of the options' precision."""
    kind = args.device.split(":")[0]
    return torch.autocast(kind, torch.bfloat16, enabled=args.autocast == "bf16")


def run(args: argparse.Namespace, build: Build) -> None:
    """Measure and print one JSON object; or be a process that is measured."""
    if args.worker:
        serve(args, build)
    else:
        print(json.dumps(report(measure(args), args)))


def synchronise(device: str) -> None:
    """Wait for the device, so that the clock reads what was done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_megabytes(device: str) -> float:
    """Return the most memory the process, or the GPU, has held."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def serve(args: argparse.Namespace, build: Build) -> None:
    """Take a turn for each line of stdin; write what it took as a line of JSON."""
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
    """Take a turn; return its seconds, the memory above ``base`` MiB and its figure."""
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
    """Write the operators of a turn to stderr, the most expensive first."""
    for _ in range(3):  # memory is allocated and caches are warm after some turns
        turn()
    with torch.profiler.profile() as profiler:
        turn()
    averages = profiler.key_averages()
    print(averages.table("self_cpu_time_total", row_limit=30), file=sys.stderr)


def measure(args: argparse.Namespace) -> Taken:
    """Return what the turns of each model took."""
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
    taken: Taken = {name: [] for name in names}
    for _ in range(args.rounds + 1):
        for name, worker in workers.items():
            worker.stdin.write("go\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            if not line:
                raise SystemExit(f"the process of {name} ended, see above")
            taken[name].append(json.loads(line))
            if not taken[name][-1]["value"] == taken[name][-1]["value"]:
                raise SystemExit(f"{name}: what it computed is not a number")
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return {name: turns[1:] for name, turns in taken.items()}  # the first allocates


def report(taken: Taken, args: argparse.Namespace) -> dict[str, object]:
    """Return the figures."""
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
    """Return what a result was measured with."""
    hidden = ("reference", "worker", "point")
    options = {k: v for k, v in vars(args).items() if k not in hidden}
    return {**options, "torch": torch.__version__}
