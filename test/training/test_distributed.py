"""Distributed training over gloo, and devices."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks
import torch
from dummies import free_port
from training_runs import change

from icefall_kd.core.distributed import World, check_device, init_world, pick_device
from icefall_kd.teachers import build_teachers
from icefall_kd.training.checkpoint import load_newest_checkpoint
from icefall_kd.transducer.checkpoint import load_checkpoint


def torchrun(config, tmp_path):
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
    """An unlabelled batch leaves a process without target for two of the terms."""
    data = dict(train=("train", "pool"), max_duration=3.0)
    config = change(config, num_epochs=1, data=data)
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
    # 17.4 + 6.9 s of cuts on two ranks; the last batch of an odd number is left out.
    assert 24.3 - 3.0 <= saved["state"]["audio"] <= 24.31


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_ranks_with_unequal_batches_end_the_epoch_together(config, tmp_path):
    data = dict(train=("train", "pool"), max_duration=2.0)
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
    config = change(config, data=dict(train=("pool",), max_duration=2.0))
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


def test_a_single_process_is_a_world_of_one(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = init_world("cpu")
    assert world == World(0, 1, torch.device("cpu")) and world.is_main
    assert world.any(True) and not world.any(False)
    assert world.gather("a") == ["a"] and world.sum([2.0]) == [2.0]


def test_unknown_and_missing_devices_are_rejected(monkeypatch):
    with pytest.raises(ValueError, match="device 'tpu'.*auto, cpu, cuda"):
        pick_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device 'cuda': torch finds no GPU"):
        pick_device("cuda")
    assert pick_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    "command, arguments",
    [
        ("decode", ["--checkpoint=no.pt", "--shar-dir=no", "--out-dir=no"]),
        ("align", ["--checkpoint=no.pt", "--shar-dir=no", "--output=no"]),
        ("extract", ["--shar-dir=no", "--teacher=whisper_base", "--model-dir=no"]),
        ("pseudo_label", ["--shar-dir=no", "--model-dir=no", "--output=no"]),
        ("train", ["--exp-dir=no"]),
    ],
)
def test_a_missing_gpu_is_rejected_before_files_are_opened(
    command, arguments, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", [command, *arguments, "--device=cuda"])
    module = importlib.import_module(f"icefall_kd.bin.{command}")
    with pytest.raises(SystemExit) as stopped:
        module.main()
    line = rf"{command}: device 'cuda': torch finds no GPU.*doctor.*"
    assert re.fullmatch(line, str(stopped.value))


def test_a_missing_second_gpu_and_teacher_gpu_are_rejected(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_device("cuda:0")
    with pytest.raises(ValueError, match="device 'cuda:1': torch finds 1 GPU"):
        check_device("cuda:1")
    with pytest.raises(ValueError, match="cpu, cuda, cuda:<number>"):
        check_device("gpu")
    described = {"a": {"model_dir": "no"}, "b": {"model_dir": "no", "device": "cuda:2"}}
    with pytest.raises(ValueError, match="device 'cuda:2'"):
        build_teachers(described)
