"""Time one training step of the student, beside the reference recipe if it is there.

    python test/bench/train_step.py [--reference /path/to/icefall] [--autocast bf16] ...

A step is forward (transducer and CTC loss), backward and ScaledAdam, in training mode
with all regularisers, on random features.  With ``--reference`` the same step of the
Zipformer of an icefall checkout runs in turn with ours, A B A B, so that both see the
same machine; ``ratio`` is its time over ours, of the fastest and of the median steps.
Processor seconds (all threads) are given beside those of the clock: on a machine that
others use they are what compares.  Prints one JSON object.  Not collected by pytest.

The predictor, the joiner and the losses outside the encoder are shared: what differs
is the front end, the encoder and the optimiser.
"""

import argparse
import copy
import json
import random
import statistics
import sys
import time
from typing import Callable, Dict, List, Optional

import reference
import torch
from torch import Tensor, nn

from icefall_kd import FBANK_SHIFT
from icefall_kd.config import ModelConfig, ZipformerConfig
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


def build_steps(args: argparse.Namespace) -> Dict[str, Step]:
    """Return the step of ours, and of the reference if one is given."""
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    config = model_config(args)
    ours = build_model(config).to(args.device).train()
    set_batch_count(ours, args.batch_count)
    generator = random.Random(args.seed)
    batch = {
        "x": torch.randn(args.batch, args.frames, 80, device=args.device) - 6.0,
        "x_lens": torch.full((args.batch,), args.frames, device=args.device),
        "tokens": [
            [generator.randrange(1, config.vocab_size) for _ in range(args.tokens)]
            for _ in range(args.batch)
        ],
    }
    optimizer = ScaledAdam(ours.parameters(), lr=0.02, clipping_scale=2.0)
    steps = {"ours": make_step(ours, optimizer, batch, ours.forward_encoder, args)}
    if args.reference:
        icefall = reference.load(args.reference)
        theirs = copy.deepcopy(ours)
        reference.replace_encoder(icefall, theirs, config.encoder, args.batch_count)
        optimizer = icefall.ScaledAdam(theirs.parameters(), lr=0.02, clipping_scale=2.0)
        encode = reference.forward_encoder(theirs)
        steps["reference"] = make_step(theirs, optimizer, batch, encode, args)
    return steps


def synchronise(device: str) -> None:
    """Wait for the device, so that the clock reads what was done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(
    steps: Dict[str, Step], args: argparse.Namespace
) -> Dict[str, Dict[str, List[float]]]:
    """Return what each step took, by the clock and of processors; models in turn."""
    clocks = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
    taken = {name: {clock: [] for clock in clocks} for name in steps}
    for i in range(args.rounds + 1):
        for name, step in steps.items():
            synchronise(args.device)
            begin = {clock: now() for clock, now in clocks.items()}
            loss = step()
            synchronise(args.device)
            if i > 0:  # the first allocates
                for clock, now in clocks.items():
                    taken[name][clock].append(now() - begin[clock])
            if not loss == loss:
                raise RuntimeError(f"{name}: the loss is not a number")
    return taken


def report(
    taken: Dict[str, Dict[str, List[float]]], args: argparse.Namespace
) -> Dict[str, object]:
    """Return the figures."""
    audio = args.batch * args.frames * FBANK_SHIFT
    result: Dict[str, Dict[str, float]] = {}
    for name, clocks in taken.items():
        result[name] = {}
        for clock, values in clocks.items():
            result[name][f"{clock}_min"] = round(min(values), 4)
            result[name][f"{clock}_median"] = round(statistics.median(values), 4)
        result[name]["times_real_time"] = round(audio / min(clocks["seconds"]), 1)
    if "reference" in result:
        ours, theirs = result["ours"], result["reference"]
        result["ratio"] = {
            key: round(theirs[key] / ours[key], 2) for key in ours if "seconds" in key
        }
    settings = {k: v for k, v in vars(args).items() if k != "reference"}
    return {**result, "settings": settings, "torch": torch.__version__}


def main() -> None:
    """Run the benchmark."""
    args = parse()
    torch.set_num_threads(args.threads)
    steps = build_steps(args)
    if args.profile:
        steps["ours"]()
        with torch.profiler.profile() as profile:
            steps["ours"]()
        table = profile.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=30
        )
        print(table, file=sys.stderr)
    print(json.dumps(report(measure(steps, args), args)))


if __name__ == "__main__":
    main()
