"""The processes of a job, and devices."""

import importlib
import re

import pytest
import torch

from icefall_kd.core.distributed import World, check_device, init_world, pick_device
from icefall_kd.teachers import build_teachers


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
