"""Time one training step of the student, beside the reference recipe if it is there.

    python test/bench/train_step.py [--reference /path/to/icefall] [--autocast bf16] ...

A step is forward (transducer and CTC loss), backward and ScaledAdam, in training mode
with all regularisers, on random features.  With ``--reference`` the same step of the
Zipformer of an icefall checkout runs in turn with ours, A B A B, each in a process of
its own, so that both see the same machine; ``ratio`` is its time over ours, of the
fastest and of the median steps.  Processor seconds (all threads) are given beside those
of the clock: on a machine that others use they are what compares.  Prints one JSON
object.  Not collected by pytest.

Ours runs after `icefall_kd.cpu.tune_cpu`, as ``bin.train`` does; the reference as its
users run it, or after the same with ``--tune-reference``.  Predictor, joiner and
the losses outside the encoder are shared: what differs is the front end, the encoder
and the optimiser.  On a CPU the reference runs in float32 whatever ``--autocast`` says.
"""

import argparse
import copy
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from typing import Callable, Dict, List, Optional

import reference
import torch
from torch import Tensor, nn

from icefall_kd import FBANK_SHIFT
from icefall_kd.config import ModelConfig, ZipformerConfig
from icefall_kd.cpu import tune_cpu
from icefall_kd.training.optim import ScaledAdam
from icefall_kd.transducer.build import build_model
from icefall_kd.transducer.loss import ctc_loss, pruned_transducer_loss
from icefall_kd.zipformer.schedules import set_batch_count

Step = Callable[[], float]


def parse(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--batch", type=int, default=32, help="utterances")
    p.add_argument("--frames", type=int, default=300, help="fbank frames of each")
    p.add_argument("--tokens", type=int, default=12, help="labels of each")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=5, help="timed steps, after one")
    p.add_argument("--autocast", choices=["none", "bf16"], default="none")
    p.add_argument("--frontend-channels", type=int, nargs=3, default=[8, 32, 128])
    p.add_argument("--convnext-expansion", type=int, default=3)
    p.add_argument("--causal", action="store_true", help="random chunks in training")
    p.add_argument("--batch-count", type=float, default=2000.0, help="of the schedules")
    p.add_argument("--device", default="cpu")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--reference", help="icefall checkout to measure beside ours")
    p.add_argument("--tune-reference", action="store_true", help="as ours is tuned")
    p.add_argument("--worker", choices=["ours", "reference"], help=argparse.SUPPRESS)
    p.add_argument("--profile", action="store_true", help="operators of ours to stderr")
    return p.parse_args(argv)


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


def make_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Dict[str, object],
    forward_encoder: Callable[[Tensor, Tensor], tuple],
    args: argparse.Namespace,
) -> Step:
    """Return a function that trains one step and returns the loss of a frame."""

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            args.device.split(":")[0], torch.bfloat16, enabled=args.autocast == "bf16"
        ):
            out, lens = forward_encoder(batch["x"], batch["x_lens"])
            simple, pruned = pruned_transducer_loss(model, out, lens, batch["tokens"])
            ctc = ctc_loss(model.ctc_output(out), lens, batch["tokens"])
        loss = 0.5 * simple + pruned + 0.2 * ctc
        loss.backward()
        optimizer.step()
        return float(loss.detach()) / int(lens.sum())

    return step


def build_step(args: argparse.Namespace, name: str) -> Step:
    """Return the step of ours or of the reference, on the same weights and batch."""
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    config = model_config(args)
    model = build_model(config).to(args.device).train()
    set_batch_count(model, args.batch_count)
    generator = random.Random(args.seed)
    batch = {
        "x": torch.randn(args.batch, args.frames, 80, device=args.device) - 6.0,
        "x_lens": torch.full((args.batch,), args.frames, device=args.device),
        "tokens": [
            [generator.randrange(1, config.vocab_size) for _ in range(args.tokens)]
            for _ in range(args.batch)
        ],
    }
    if name == "ours":
        optimizer = ScaledAdam(model.parameters(), lr=0.02, clipping_scale=2.0)
        return make_step(model, optimizer, batch, model.forward_encoder, args)
    icefall = reference.load(args.reference)
    theirs = copy.deepcopy(model)
    reference.replace_encoder(icefall, theirs, config.encoder, args.batch_count)
    optimizer = icefall.ScaledAdam(theirs.parameters(), lr=0.02, clipping_scale=2.0)
    encode = reference.forward_encoder(theirs)
    if args.device == "cpu":
        args.autocast = "none"  # its own functions do not run under it on a CPU
    return make_step(theirs, optimizer, batch, encode, args)


def synchronise(device: str) -> None:
    """Wait for the device, so that the clock reads what was done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_megabytes(device: str) -> float:
    """Return the most memory the process, or the GPU, has held."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def serve(args: argparse.Namespace) -> None:
    """Take a step for each line of stdin; write what it took as a line of JSON."""
    if args.worker == "ours" or args.tune_reference:
        tune_cpu()
    torch.set_num_threads(args.threads)
    step = build_step(args, args.worker)
    base = peak_megabytes(args.device)
    if args.profile and args.worker == "ours":
        step()
        with torch.profiler.profile() as profile:
            step()
        averages = profile.key_averages()
        print(averages.table("self_cpu_time_total", row_limit=30), file=sys.stderr)
    for _ in sys.stdin:
        synchronise(args.device)
        clock, processor = time.perf_counter(), time.process_time()
        loss = step()
        synchronise(args.device)
        taken = {
            "seconds": time.perf_counter() - clock,
            "cpu_seconds": time.process_time() - processor,
            "step_megabytes": peak_megabytes(args.device) - base,
            "loss": loss,
        }
        print(json.dumps(taken), flush=True)


def measure(args: argparse.Namespace) -> Dict[str, List[Dict[str, float]]]:
    """Return what the steps of each model took, one step of each in turn."""
    names = ["ours", "reference"] if args.reference else ["ours"]
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    }
    taken: Dict[str, List[Dict[str, float]]] = {name: [] for name in names}
    for _ in range(args.rounds + 1):
        for name, worker in workers.items():
            worker.stdin.write("step\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            if not line:
                raise SystemExit(f"the process of {name} ended, see above")
            taken[name].append(json.loads(line))
            if not taken[name][-1]["loss"] == taken[name][-1]["loss"]:
                raise SystemExit(f"{name}: the loss is not a number")
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return {name: steps[1:] for name, steps in taken.items()}  # the first allocates


def report(
    taken: Dict[str, List[Dict[str, float]]], args: argparse.Namespace
) -> Dict[str, object]:
    """Return the figures."""
    audio = args.batch * args.frames * FBANK_SHIFT
    result: Dict[str, Dict[str, float]] = {}
    for name, steps in taken.items():
        result[name] = {}
        for clock in ("seconds", "cpu_seconds"):
            values = [step[clock] for step in steps]
            result[name][f"{clock}_min"] = round(min(values), 4)
            result[name][f"{clock}_median"] = round(statistics.median(values), 4)
        result[name]["times_real_time"] = round(audio / result[name]["seconds_min"], 1)
        result[name]["step_megabytes"] = round(steps[-1]["step_megabytes"])
    if "reference" in result:
        ours, theirs = result["ours"], result["reference"]
        result["ratio"] = {
            key: round(theirs[key] / ours[key], 2)
            for key in ours
            if "seconds" in key or "megabytes" in key
        }
    settings = {k: v for k, v in vars(args).items() if k not in ("reference", "worker")}
    return {**result, "settings": settings, "torch": torch.__version__}


def main() -> None:
    """Run the benchmark."""
    args = parse()
    if args.worker:
        serve(args)
    else:
        print(json.dumps(report(measure(args), args)))


if __name__ == "__main__":
    main()
