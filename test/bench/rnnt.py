"""Time the pruned transducer loss and its gradient with k2 and in PyTorch.

    python test/bench/rnnt.py [--device cuda] [--batch 20 --frames 400 --labels 80]

The backends take turns, so that the load of the machine affects both.  The JSON has the
median seconds of each, their processor seconds (of all threads), k2's time over
PyTorch's (``ratio``, median of the turns), and the largest difference of the losses,
relative to k2's.  Where k2 is missing or lacks the device, PyTorch is timed alone.
"""

import argparse
import functools
import json
import statistics

import torch
from side_by_side import synchronise, timed
from torch import nn

from icefall_kd.core.cpu import tune_cpu
from icefall_kd.transducer.loss import pruned_transducer_loss
from icefall_kd.transducer.model import AsrModel, Decoder, Joiner
from icefall_kd.transducer.rnnt import load_backend


def get_parser() -> argparse.ArgumentParser:
    """Return the arguments."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--batch", type=int, default=20, help="utterances")
    p.add_argument("--frames", type=int, default=400, help="of 40 ms")
    p.add_argument("--labels", type=int, default=80)
    p.add_argument("--vocab-size", type=int, default=500)
    p.add_argument("--prune-range", type=int, default=5)
    p.add_argument("--dim", type=int, default=512, help="of predictor and joiner")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--rounds", type=int, default=7, help="timed turns, after one more")
    p.add_argument("--device", default="cpu")
    return p


def make_turn(args: argparse.Namespace, backend: str):
    """Return a function that computes loss and gradient, and returns the loss."""
    torch.manual_seed(0)
    model = AsrModel(
        encoder_embed=nn.Identity(),
        encoder=nn.Identity(),
        decoder=Decoder(args.vocab_size, args.dim),
        joiner=Joiner(args.dim, args.dim, args.dim, args.vocab_size),
        encoder_dim=args.dim,
        decoder_dim=args.dim,
        vocab_size=args.vocab_size,
    ).to(args.device)
    encoder_out = torch.randn(args.batch, args.frames, args.dim, device=args.device)
    encoder_out.requires_grad_()
    shorter = torch.linspace(1.0, 0.7, args.batch)
    lens = (args.frames * shorter).long().to(args.device)
    tokens = [
        torch.randint(1, args.vocab_size, (int(n),)).tolist()
        for n in args.labels * shorter
    ]

    def turn() -> float:
        model.zero_grad(set_to_none=True)
        losses = pruned_transducer_loss(
            model,
            encoder_out,
            lens,
            tokens,
            prune_range=args.prune_range,
            backend=backend,
        )
        total = losses[0] + losses[1]
        total.backward()
        return float(total)

    return turn


def main() -> None:
    """Print the JSON."""
    args = get_parser().parse_args()
    tune_cpu()
    torch.set_num_threads(args.threads)
    has_k2 = load_backend("auto", torch.device(args.device)).__name__ == "k2"
    names = ["k2", "torch"] if has_k2 else ["torch"]
    turns = {name: make_turn(args, name) for name in names}
    times: dict[str, list] = {name: [] for name in names}
    for _ in range(args.rounds + 1):
        for name, turn in turns.items():
            synchronise(args.device)
            times[name].append(timed(turn, 0.0, args.device))
    result = {**vars(args), "torch_version": torch.__version__}
    median = functools.partial(_median, times)
    for name in names:
        result[name] = {k: median(name, k) for k in ("seconds", "cpu_seconds")}
    if has_k2:
        pairs = list(zip(times["k2"][1:], times["torch"][1:]))
        result["ratio"] = {
            k: statistics.median(a[k] / b[k] for a, b in pairs)
            for k in ("seconds", "cpu_seconds")
        }
        result["difference"] = max(abs(b["value"] / a["value"] - 1) for a, b in pairs)
    print(json.dumps(result))


def _median(times: dict[str, list], name: str, key: str) -> float:
    return statistics.median(turn[key] for turn in times[name][1:])


if __name__ == "__main__":
    main()
