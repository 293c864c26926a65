"""Time one training step of the student, and optionally of icefall.

    python test/bench/train_step.py [--reference /path/to/icefall] [--autocast bf16] ...

A step is forward (transducer and CTC loss), backward and ScaledAdam, in training mode
with all regularisers, on random features.  With ``--reference``, the same step with
icefall's front end, encoder and optimiser runs in turn with ours, see `side_by_side`.
``value`` is the loss of a frame; random regularisers make it differ.  It prints one
JSON object.

Ours runs after ``tune_cpu``, as in ``bin.train``; the reference only with
``--tune-reference``.  On a CPU the reference always runs in float32.

``--vary`` gives each step another length, as in real training, where oneDNN generates
code for new shapes.  ``--parts`` prints the processor seconds of each part of our step.
"""

import argparse
import copy
import itertools
import json
import random
from collections.abc import Iterator
from typing import Callable, Optional

import parts
import reference
import side_by_side
import torch
from torch import Tensor, nn

from icefall_kd.core.config import ModelConfig
from icefall_kd.core.cpu import tune_cpu
from icefall_kd.training.optim import ScaledAdam
from icefall_kd.transducer.loss import ctc_loss, pruned_transducer_loss
from icefall_kd.transducer.model import build_model
from icefall_kd.zipformer.scaling import set_batch_count


def parse() -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    side_by_side.add_arguments(p)
    p.add_argument("--tokens", type=int, default=12, help="tokens of each utterance")
    p.add_argument(
        "--batch-count", type=float, default=2000.0, help="batch count of the schedules"
    )
    p.add_argument("--vary", action="store_true", help="another length in each step")
    p.add_argument("--parts", action="store_true", help="time the parts of our step")
    return p.parse_args()


def make_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[dict[str, object]],
    forward_encoder: Callable[[Tensor, Tensor], tuple],
    args: argparse.Namespace,
) -> side_by_side.Turn:
    """Return a function that trains one step and returns the loss per frame."""

    def step() -> float:
        batch = next(batches)
        optimizer.zero_grad(set_to_none=True)
        with side_by_side.autocast(args):
            out, lens = forward_encoder(batch["x"], batch["x_lens"])
            simple, pruned = pruned_transducer_loss(model, out, lens, batch["tokens"])
            ctc = ctc_loss(model.ctc_output(out), lens, batch["tokens"])
        loss = 0.5 * simple + pruned + 0.2 * ctc
        loss.backward()
        optimizer.step()
        return float(loss.detach()) / int(lens.sum())

    return step


def make_batches(args: argparse.Namespace, vocab_size: int) -> list[dict[str, object]]:
    """Return one batch, or with ``--vary`` a batch for each step.

    With ``--vary``, lengths are 0.5 to 1.5 times ``--frames``; the number of utterances
    keeps the duration of a batch about constant.
    """
    generator = random.Random(args.seed)
    batches = []
    for _ in range(args.rounds + 3 if args.vary else 1):
        frames = args.frames
        if args.vary:
            frames = generator.randrange(frames // 2, frames * 3 // 2)
        size = max(1, round(args.batch * args.frames / frames))
        tokens = [
            [generator.randrange(1, vocab_size) for _ in range(args.tokens)]
            for _ in range(size)
        ]
        x = torch.randn(size, frames, 80, device=args.device) - 6.0
        x_lens = torch.full((size,), frames, device=args.device)
        batches.append({"x": x, "x_lens": x_lens, "tokens": tokens})
    return batches


def build_step(args: argparse.Namespace, name: str) -> side_by_side.Turn:
    """Return a function that runs our training step or the reference's."""
    return build(args, name)[2]


def build(
    args: argparse.Namespace, name: str, config: Optional[ModelConfig] = None
) -> tuple[nn.Module, torch.optim.Optimizer, side_by_side.Turn]:
    """Return model, optimiser and step of ours or of the reference.

    Args:
      config: shape of the model; None takes it from the options.
    """
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    config = config or side_by_side.model_config(args)
    model = build_model(config).to(args.device).train()
    set_batch_count(model, args.batch_count)
    batches = itertools.cycle(make_batches(args, config.vocab_size))
    if name == "ours":
        optimizer = ScaledAdam(model.parameters(), lr=0.02, clipping_scale=2.0)
        step = make_step(model, optimizer, batches, model.forward_encoder, args)
        return model, optimizer, step
    icefall = reference.load(args.reference)
    theirs = copy.deepcopy(model)
    reference.replace_encoder(icefall, theirs, config.encoder, args.batch_count)
    optimizer = icefall.ScaledAdam(theirs.parameters(), lr=0.02, clipping_scale=2.0)
    encode = reference.forward_encoder(theirs)
    if args.device == "cpu":
        args.autocast = "none"  # icefall's functions do not support it on a CPU
    return theirs, optimizer, make_step(theirs, optimizer, batches, encode, args)


def profile_parts(args: argparse.Namespace) -> dict[str, object]:
    """Return the median processor seconds of the step and of its parts."""
    tune_cpu()
    torch.set_num_threads(args.threads)
    model, optimizer, step = build(args, "ours")
    found = parts.profile(step, model, optimizer, args.rounds)
    found = {part: round(seconds, 4) for part, seconds in found.items()}
    total = round(sum(found.values()), 4)
    return {
        "cpu_seconds": total,
        "parts": found,
        "settings": side_by_side.settings(args),
    }


def main() -> None:
    """Run the benchmark."""
    args = parse()
    if args.parts:
        print(json.dumps(profile_parts(args)))
    else:
        side_by_side.run(args, build_step)


if __name__ == "__main__":
    main()
