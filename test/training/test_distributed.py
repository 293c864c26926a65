"""Distributed training over gloo."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import ranks
import torch
from dummies import free_port
from run_metrics import metrics
from training_runs import change

from icefall_kd.core.distributed import World
from icefall_kd.training.checkpoint import load_newest_checkpoint
from icefall_kd.training.setup import build_setup, make_train_loader
from icefall_kd.transducer.checkpoint import load_checkpoint


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def torchrun(config, tmp_path):
    """Run the training command in two processes."""
    path = ranks.save_config(config, tmp_path / "config.yaml")
    # Not --standalone: its port, 29400, may belong to another test.
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    command += ["--nproc_per_node", "2", "-m", "icefall_kd.bin.train"]
    return subprocess.run(
        [*command, "--config", path],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )


def test_two_processes_train_with_and_without_targets(config, tmp_path):
    """In an unlabelled batch, two of the terms have no target in this process.

    The last update of the epoch has two batches instead of three.
    """
    data = dict(train=("train", "unlabelled"), max_duration=2.0)
    config = change(config, num_epochs=1, data=data, optim=dict(accumulate=3))
    done = torchrun(config, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    exp_dir = Path(config.exp_dir)
    saved = load_checkpoint(exp_dir / "epoch-1.pt")
    batches = list(
        make_train_loader(build_setup(config), World(0, 2, torch.device("cpu")))
    )
    assert len(saved["rng"]) == 2 and len(batches) % 3 == 2
    assert saved["state"]["step"] == (len(batches) + 1) / 3 > 2
    assert all(torch.isfinite(v).all() for v in saved["model"].values())
    steps = [line["step"] for line in metrics(config)]
    assert steps == list(range(1, saved["state"]["step"] + 1))
    # 17.4 + 6.9 s of cuts on two ranks; the last batch of an odd number is left out.
    assert 24.3 - 2.0 <= saved["state"]["audio"] <= 24.31


def test_ranks_with_unequal_batches_end_the_epoch_together(config, tmp_path):
    data = dict(train=("train", "unlabelled"), max_duration=2.0)
    config = change(config, data=data)
    path = ranks.save_config(config, tmp_path / "config.yaml")
    with ranks.Job(ranks.run_unequal, (path, str(tmp_path)), tmp_path) as job:
        assert [job.end(rank) for rank in range(2)] == [0, 0], job.log(0)
    taken = [read_lines(tmp_path / f"cuts.{rank}.jsonl") for rank in range(2)]
    assert [e for e, _ in taken[0]] == [e for e, _ in taken[1]]
    for epoch in range(2):
        ids = [i for rank in taken for e, some in rank if e == epoch for i in some]
        assert len(ids) == len(set(ids)) > 8
    saved = load_checkpoint(Path(config.exp_dir) / "epoch-2.pt")
    assert saved["state"]["step"] == len(taken[0])


def test_ranks_agree_that_a_term_used_no_cut(only, tmp_path):
    config = only("embedding", "ctc", num_epochs=1)
    config = change(config, data=dict(train=("unlabelled",), max_duration=2.0))
    path = ranks.save_config(config, tmp_path / "config.yaml")
    with ranks.Job(ranks.run_command, (path,), tmp_path) as job:
        assert [job.end(rank) for rank in range(2)] == [1, 1], job.log(0)
        pattern = r"term 'ctc' skipped (\d+) of \1 cuts.*"
        messages = [re.search(pattern, job.log(rank))[0] for rank in range(2)]
    assert messages[0] == messages[1]
    assert not list(Path(config.exp_dir).glob("*.pt"))
    names = [log.name[-2:] for log in (Path(config.exp_dir) / "log").iterdir()]
    assert sorted(names) == ["-0", "-1"]


def test_ranks_stop_at_the_same_step_and_end_when_one_is_killed(config, tmp_path):
    data = dict(max_duration=2.0)
    config = change(config, num_epochs=40, save_every_n=3, data=data)
    path = ranks.save_config(config, tmp_path / "config.yaml")
    lines = Path(config.exp_dir) / "metrics.jsonl"

    def reached(step):
        return lines.exists() and f'"step": {step},' in lines.read_text()

    with ranks.Job(ranks.run_command, (path,), tmp_path) as job:
        job.wait_for(lambda: reached(4))
        os.kill(job.processes[1].pid, signal.SIGTERM)
        assert [job.end(rank) for rank in range(2)] == [143, 143], job.log(0)
        messages = [re.search(r"stopped on request.*", job.log(r))[0] for r in range(2)]
    assert messages[0] == messages[1]
    step = load_newest_checkpoint(config.exp_dir)["state"]["step"]
    assert f"after update {step}," in messages[0]

    with ranks.Job(ranks.run_command, (path,), tmp_path) as job:
        job.wait_for(lambda: reached(step + 4))
        os.kill(job.processes[1].pid, signal.SIGKILL)
        began = time.monotonic()
        assert job.end(0) == 1
        assert time.monotonic() - began < 60
        assert f"step {step}\n" in job.log(0)
        assert re.search(r"train: rank 1 sends no heartbeat.*again", job.log(0))
    assert load_newest_checkpoint(config.exp_dir)["state"]["step"] > step
