"""Two processes over gloo train one student."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from icefall_kd.config import to_dict
from icefall_kd.training.checkpoint import load_checkpoint
from icefall_kd.training.distributed import World, init_world, pick_device


def torchrun(config, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "-m", "icefall_kd.bin.train"]
    return subprocess.run(
        [*command, "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )


def test_two_processes_train_with_and_without_targets(config, tmp_path):
    """Batches without text leave a process without target for two of the terms."""
    data = dataclasses.replace(config.data, train=("train", "pool"), max_duration=3.0)
    config = dataclasses.replace(config, data=data, num_epochs=1)
    done = torchrun(config, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    exp_dir = Path(config.exp_dir)
    saved = load_checkpoint(exp_dir / "epoch-1.pt")
    assert saved["state"]["step"] > 2 and len(saved["rng"]) == 2
    assert all(torch.isfinite(v).all() for v in saved["model"].values())
    text = (exp_dir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [x["step"] for x in lines if x["kind"] == "train"] == list(
        range(1, saved["state"]["step"] + 1)
    )
    # 17.4 + 6.9 s of cuts, each for one of the two; an odd batch at the end is left.
    assert 24.3 - 3.0 <= saved["state"]["audio"] <= 24.31


def test_alone_is_a_world_of_one(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = init_world("cpu")
    assert world == World(0, 1, torch.device("cpu")) and world.is_main
    assert world.any(True) and not world.any(False)
    assert world.gather("a") == ["a"] and world.sum([2.0]) == [2.0]


def test_unknown_and_absent_devices_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="auto, cpu or cuda"):
        pick_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees none"):
        pick_device("cuda")
    assert pick_device("auto") == torch.device("cpu")
