"""Train a small student on a GPU: precision, resume, averages, DDP."""

import argparse
import dataclasses
import json
import math
from pathlib import Path

import torch
from agreement import check_limit, relative_difference
from dummies import noise_cuts
from torch import distributed as dist

from icefall_kd.core.config import ModelConfig, ZipformerConfig
from icefall_kd.core.distributed import World, wrap_ddp
from icefall_kd.core.frames import move_to_device
from icefall_kd.data.shar import write_shar
from icefall_kd.data.tokens import train_bpe, write_lang
from icefall_kd.distill import TermsConfig
from icefall_kd.distill.transducer import CtcConfig, TransducerConfig
from icefall_kd.training.checkpoint import write_average
from icefall_kd.training.config import DataConfig, OptimConfig, TrainConfig
from icefall_kd.training.metrics import read_metrics
from icefall_kd.training.run import train
from icefall_kd.training.setup import build_setup, make_train_loader
from icefall_kd.transducer.checkpoint import load_checkpoint, load_model

WORDS = "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN".split()
VOCAB_SIZE = 24
BATCH = 5.0  # s of audio
STUDENT = ModelConfig(
    encoder=ZipformerConfig(
        frontend_channels=(4, 4, 128),
        convnext_expansion=1,
        downsampling_factor=(1, 2),
        num_encoder_layers=(1, 1),
        encoder_dim=(32, 48),
        encoder_unmasked_dim=(32, 32),
        feedforward_dim=(32, 48),
        num_heads=(2, 2),
        query_head_dim=(8,),
        value_head_dim=(8,),
        pos_dim=8,
        cnn_module_kernel=(7, 7),
        warmup_hours=0.04,
    ),
    vocab_size=VOCAB_SIZE,
    decoder_dim=32,
    joiner_dim=32,
)


def make_config(args: argparse.Namespace, name: str, **changes) -> TrainConfig:
    """Return the configuration of a run on noise; write its data the first time."""
    root = args.out / "data"
    if not (root / "lang").exists():
        (root / "audio").mkdir(parents=True)
        count = 12 if args.tiny else 250
        texts = [
            " ".join((WORDS * 2)[i % 10 : i % 10 + 1 + i % 3]) for i in range(count)
        ]
        durations = [0.9 + 0.1 * (i % 12) for i in range(count)]
        write_shar(noise_cuts(root / "audio", durations, texts), root / "shar/train")
        write_lang(train_bpe(texts * 20, VOCAB_SIZE), root / "lang")
    data = DataConfig(
        shar_dir=str(root / "shar"),
        bpe_model=str(root / "lang/bpe.model"),
        dev=None,
        max_duration=BATCH,
        num_buckets=2,
    )
    config = TrainConfig(
        exp_dir=str(args.out / name),
        model=STUDENT,
        data=data,
        terms=TermsConfig(
            transducer=TransducerConfig(warm_steps=10, backend="torch"), ctc=CtcConfig()
        ),
        optim=OptimConfig(warmup_batches=5.0),
        num_epochs=1,
        device=args.device,
        average_period=2,
        log_interval=1,
        memory_probe=False,
        tensorboard=False,
    )
    return dataclasses.replace(config, **changes)


def compare_ddp(args: argparse.Namespace) -> dict:
    """Compare gradients with and without DDP, in a group of one rank."""
    config = make_config(args, "ddp")
    device = torch.device(args.device)
    world = World(0, 1, device)
    setup = build_setup(config)
    student = setup.student.to(device)
    batch = move_to_device(next(iter(make_train_loader(setup, world))), device)
    store = args.out / "store"
    store.unlink(missing_ok=True)
    dist.init_process_group(
        "nccl" if args.device == "cuda" else "gloo",
        init_method=f"file://{store.absolute()}",
        rank=0,
        world_size=1,
    )
    found = []
    try:
        for module in (wrap_ddp(student, False), student):
            student.zero_grad(set_to_none=True)
            student.eval()  # no random layers
            module(batch, 100)[0].backward()
            grads = [p.grad for _, p in student.trainable() if p.grad is not None]
            found.append([g.clone().cpu() for g in grads if bool(g.any())])
    finally:
        dist.destroy_process_group()
    assert len(found[0]) == len(found[1]) > 20
    difference = max(relative_difference(*pair) for pair in zip(*found))
    check_limit({"gradients": difference})
    return {
        "backend": "nccl" if args.device == "cuda" else "gloo",
        "gradients": difference,
    }


def resume_and_average(args: argparse.Namespace) -> dict:
    """Compare a resumed run with an uninterrupted one, and load its average."""
    weights = []
    for name, parts in (("resumed", (1, 2)), ("at_once", (2,))):
        for epochs in parts:
            config = make_config(args, name, num_epochs=epochs)
            train(config)
        weights.append(load_checkpoint(Path(config.exp_dir) / "epoch-2.pt")["model"])
    found, expected = weights
    difference = max(
        relative_difference(found[k], v)
        for k, v in expected.items()
        if v.is_floating_point()
    )
    # The order of atomic sums differs between two runs on a GPU.
    check_limit({"weights": difference}, 0.0 if args.device == "cpu" else 1e-2)
    path = args.out / "pretrained.pt"
    write_average(config.exp_dir, 2, 1, path)
    model, _, _ = load_model(path, args.device)
    finite = all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert finite, f"{path} has weights that are not finite"
    return {"weights": difference}


def train_in_half_precision(args: argparse.Namespace) -> dict:
    """Train about 200 updates in bfloat16 and float16; no batch may be skipped."""
    found = {}
    for amp in ("bf16", "fp16") if args.device == "cuda" else ("none",):
        config = make_config(args, amp, amp=amp, num_epochs=1 if args.tiny else 3)
        train(config)
        exp_dir = Path(config.exp_dir)
        state = load_checkpoint(exp_dir / f"epoch-{config.num_epochs}.pt")["state"]
        lines = read_metrics(exp_dir / "metrics.jsonl")
        losses = [x["loss"] for x in lines if x["kind"] == "train"]
        skipped = [
            {k: v for k, v in x.items() if "skipped" in k and v}
            for x in lines
            if x["kind"] == "epoch"
        ]
        late = [step for step in _bad_steps(exp_dir) if step > 10]
        found[amp] = {
            "updates": state["step"],
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "skipped": skipped,
        }
        assert not late, f"{amp}: skipped batches after updates {late}"
        assert math.isfinite(losses[-1]), f"{amp}: loss {losses[-1]}"
        assert not any(skipped[1:]), f"{amp}: skipped cuts after epoch 1: {skipped}"
    return found


def _bad_steps(exp_dir: Path) -> list[int]:
    """Return the updates at which batches were skipped."""
    paths = exp_dir.glob("bad_batches.*.jsonl")
    lines = [line for path in paths for line in path.read_text().splitlines()]
    return [json.loads(line)["step"] for line in lines]
