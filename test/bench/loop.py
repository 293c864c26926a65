"""Measure the training loop next to the training step that `train_step` measures.

    cd egs/asterisk/KD; python ../../../test/bench/loop.py --batches 30 -- \\
      --config conf/student.yaml --config conf/unified.yaml --config conf/finetune.yaml

Trains on the recipe's data in a temporary folder, with the options of ``bin.train``
after "--" and one thread.  After each batch of the loop, the step of `train_step` runs
on random features of the same shape.  It prints one JSON object:

- ``seconds``: median processor seconds of the parts of a batch: reading the batch,
  forward and backward pass, the same pass again (oneDNN has code for the shapes), the
  update and its optimiser; and of the step of `train_step`;
- ``ratio``: seconds of all steps over seconds of the loop, for the same padded audio;
- ``padding``: share of padding in the batches.

The first batch is not counted.  Not collected by pytest.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Callable

import torch
import train_step

from icefall_kd import FBANK_SHIFT
from icefall_kd.core.cpu import tune_cpu
from icefall_kd.core.distributed import init_world
from icefall_kd.training.config import TrainConfig, parse_config
from icefall_kd.training.loop import Trainer
from icefall_kd.training.optim import ScaledAdam
from icefall_kd.training.setup import build_setup
from icefall_kd.transducer.model import build_model
from icefall_kd.zipformer.scaling import set_batch_count

Batch = dict[str, Any]


class Stopwatch:
    """Processor seconds of functions, one entry for each call."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def call(self, part: str, function: Callable, *args: Any) -> Any:
        """Return ``function(*args)``; add its seconds to ``part``."""
        start = time.process_time()
        result = function(*args)
        self.seconds[part].append(time.process_time() - start)
        return result

    def watch(self, owner: object, method: str, part: str) -> None:
        """Measure a method in all later calls."""
        inner = getattr(owner, method)
        setattr(owner, method, lambda *args: self.call(part, inner, *args))


def make_step(config: TrainConfig, current: Batch) -> Callable[[], float]:
    """Return the step of `train_step` on features with the shape of ``current``."""

    def batches() -> Iterator[Batch]:
        while True:
            x = torch.randn(current["features"].shape) - 6.0
            lens = torch.full((x.shape[0],), x.shape[1])
            tokens = current.get("tokens") or [[1] * 8] * len(x)
            yield {"x": x, "x_lens": lens, "tokens": tokens}

    model = build_model(config.model).train()
    set_batch_count(model, 2000.0)
    optimizer = ScaledAdam(model.parameters(), lr=0.02, clipping_scale=2.0)
    args = argparse.Namespace(device="cpu", autocast="none")
    return train_step.make_step(
        model, optimizer, batches(), model.forward_encoder, args
    )


def measure(config: TrainConfig, count: int) -> dict[str, Any]:
    """Train ``count`` batches; return the results."""
    setup = build_setup(config)
    trainer = Trainer(setup, init_world("cpu"))
    trainer.state.step = config.optim.frozen_batches  # train the encoder too
    watch, current = Stopwatch(), {}
    watch.watch(trainer.optimizer, "step", "optimiser")
    step = make_step(setup.config, current)
    trainer.module.train()
    batches = trainer.batches.read(0, is_resumed=False)
    audio = padded = 0.0
    for _ in range(count):
        batch, _ = watch.call("read", next, batches, (None, False))
        if batch is None:
            break
        watch.call("backward", trainer._train_batch, batch, True)
        watch.call("update", trainer._update)
        watch.call("backward again", trainer._train_batch, batch, True)
        trainer._trained.clear()  # the next batch starts from zero gradients
        current.update(batch)
        watch.call("train_step", step)
        audio += float(batch["feature_lens"].sum()) * FBANK_SHIFT
        padded += batch["features"][..., 0].numel() * FBANK_SHIFT
    taken = {part: values[1:] for part, values in watch.seconds.items()}
    loop = sum(sum(taken[part]) for part in ("read", "backward", "update"))
    return {
        "seconds": {k: round(statistics.median(v), 4) for k, v in taken.items()},
        "ratio": round(sum(taken["train_step"]) / loop, 3),
        "padding": round(1.0 - audio / padded, 3),
    }


def main() -> None:
    """Run the benchmark."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--batches", type=int, default=30, help="batches (default: 30)")
    p.add_argument("options", nargs="*", help="options of bin.train, after --")
    args = p.parse_args()
    tune_cpu()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        fixed = ["--exp-dir", folder, "--memory_probe", "false", "--amp", "none"]
        print(json.dumps(measure(parse_config([*args.options, *fixed]), args.batches)))


if __name__ == "__main__":
    main()
