"""Compare the loss of our encoder and of icefall's over training steps.

    python test/bench/convergence.py --reference /path/to/icefall \\
        --shar-dir egs/asterisk/KD/data/shar/train \\
        --bpe-model egs/asterisk/KD/data/lang_bpe_150/bpe.model

The systems are front end, Zipformer encoder and ScaledAdam of an icefall checkout, ours
in float32, and ours with bfloat16 autocast.  All start from the same weights and train
for ``--steps`` steps on transducer and CTC losses, with the same batches of real audio,
learning rates and regulariser schedules.  They differ in their implementation and in
the random numbers of the regularisers; "ours, other random numbers" measures the effect
of these numbers alone.  Each system runs in its own process, one after the other.
Prints one JSON object, the mean loss per frame over windows of 50 steps, and a Markdown
table.  Not collected by pytest.
"""

import argparse
import copy
import itertools
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator

import reference
import side_by_side
import torch
import train_step

from icefall_kd.core.cpu import tune_cpu
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.dataset.dataset import Loader
from icefall_kd.dataset.stream import open_stream
from icefall_kd.training.optim import Eden, ScaledAdam
from icefall_kd.transducer.model import build_model
from icefall_kd.zipformer.scaling import set_batch_count

WINDOW = 50  # steps in a mean
# name -> model, autocast, seed of the regularisers
SYSTEMS = {
    "icefall": ("reference", "none", 0),
    "ours": ("ours", "none", 0),
    "ours, other random numbers": ("ours", "none", 1),
    "ours, bfloat16": ("ours", "bf16", 0),
}


def parse() -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    side_by_side.add_arguments(p)
    p.add_argument("--shar-dir", required=True, help="labelled cuts")
    p.add_argument("--bpe-model", required=True)
    p.add_argument("--steps", type=int, default=300)
    p.add_argument(
        "--max-duration",
        type=float,
        default=30.0,
        help="maximum duration of a batch in seconds",
    )
    p.add_argument("--base-lr", type=float, default=0.03, help="before the schedule")
    p.add_argument("--system", choices=list(SYSTEMS), help=argparse.SUPPRESS)
    return p.parse_args()


def real_batches(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield batches of ``--shar-dir`` without end, the same for every system."""
    stream = open_stream([args.shar_dir], seed=args.seed, shuffle=True)
    tokenizer = Tokenizer(args.bpe_model)
    for epoch in itertools.count():
        options = dict(max_duration=args.max_duration, seed=args.seed, epoch=epoch)
        for batch in Loader(stream, tokenizer=tokenizer, **options):
            yield {
                "x": batch["features"],
                "x_lens": batch["feature_lens"],
                "tokens": batch["tokens"],
            }


def train(args: argparse.Namespace) -> list[float]:
    """Return the loss per frame at each step of ``args.system``."""
    name, args.autocast, seed = SYSTEMS[args.system]
    tune_cpu()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    config = side_by_side.model_config(args)
    model = build_model(config).train()
    encode, optimizer_class, scheduled = model.forward_encoder, ScaledAdam, []
    if name == "reference":
        icefall = reference.load(args.reference)
        model = copy.deepcopy(model)
        reference.replace_encoder(icefall, model, config.encoder, 0.0)
        encode, optimizer_class = reference.forward_encoder(model), icefall.ScaledAdam
        scheduled = [m for m in model.modules() if hasattr(m, "batch_count")]
    optimizer = optimizer_class(model.parameters(), lr=args.base_lr, clipping_scale=2.0)
    schedule = Eden(optimizer, lr_batches=5000, lr_epochs=100, warmup_batches=100)
    batches = real_batches(args)
    step = train_step.make_step(model, optimizer, batches, encode, args)
    torch.manual_seed(1000 + seed)
    random.seed(1000 + seed)
    losses = []
    for n in range(args.steps):
        set_batch_count(model, n)
        for module in scheduled:
            module.batch_count = float(n)
        losses.append(step())
        schedule.step_batch()
    return losses


def windows(losses: list[float]) -> dict[str, str]:
    """Return "steps 1 to 50" -> mean loss per frame, for each window."""
    return {
        f"steps {n + 1} to {n + WINDOW}": f"{statistics.mean(part):.3f}"
        for n, part in (
            (n, losses[n : n + WINDOW]) for n in range(0, len(losses), WINDOW)
        )
    }


def main() -> None:
    """Run all systems in processes, or one in this process."""
    args = parse()
    if args.system:
        print(json.dumps(train(args)))
        return
    systems = [s for s in SYSTEMS if args.reference or s != "icefall"]
    losses = {}
    for system in systems:
        command = [sys.executable, *sys.argv, "--system", system]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        losses[system] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({"losses": losses, "settings": side_by_side.settings(args)}))
    print(
        side_by_side.markdown_table(
            [{"system": s, **windows(x)} for s, x in losses.items()]
        )
    )


if __name__ == "__main__":
    main()
