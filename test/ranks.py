"""Processes of a distributed job, for tests that kill some of them.

They are forked from a server that has imported the training modules, because the
import takes seconds.
"""

import json
import multiprocessing
import os
import time
from pathlib import Path

import torch
import yaml
from dummies import free_port
from lhotse import CutSet

from icefall_kd.bin import train as command
from icefall_kd.core.config import to_dict
from icefall_kd.core.distributed import World, init_world
from icefall_kd.dataset.dataset import Loader
from icefall_kd.training import loop
from icefall_kd.training.config import parse_config
from icefall_kd.training.interruptions import PeerWatch
from icefall_kd.training.setup import build_setup

# Not this module: before Python 3.12 the server cannot import from test/.
PRELOAD = ["icefall_kd.bin.train", "icefall_kd.transducer.loss", "kaldi_native_fbank"]


class Job:
    """``size`` processes that call ``target(*arguments)``, connected by gloo.

    Attributes:
      processes: by rank.
      logs: path of the stdout and stderr of each.
    """

    def __init__(self, target, arguments, folder: Path, size: int = 2) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = [folder / f"log.{port}.{rank}" for rank in range(size)]
        self.processes = [
            context.Process(
                target=_start,
                args=(target, arguments, rank, size, port, self.logs[rank]),
                daemon=True,
            )
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def log(self, rank: int) -> str:
        """Return the output of a process so far."""
        return self.logs[rank].read_text() if self.logs[rank].exists() else ""

    def wait_for(self, condition, timeout: float = 60.0) -> None:
        """Wait until ``condition()`` is true; fail if a process ends before."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, self.log(0) + self.log(1)
            assert all(p.exitcode is None for p in self.processes), self.log(0)
            time.sleep(0.005)

    def end(self, rank: int, timeout: float = 60.0) -> int:
        """Wait for a process and return its exit status."""
        self.processes[rank].join(timeout)
        status = self.processes[rank].exitcode
        assert status is not None, f"rank {rank} hangs: {self.log(rank)}"
        return status

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            process.kill()


def _start(target, arguments, rank, size, port, log) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    target(*arguments)


def save_config(config, path: Path) -> str:
    """Write a configuration for the command, and return the path."""
    path.write_text(yaml.safe_dump(to_dict(config)))
    return str(path)


def run_command(config: str) -> None:
    """Run the training command."""
    command.main(["--config", config])


def run_unequal(config: str, folder: str) -> None:
    """Train with two batches less on rank 1; write the cuts of each batch to a file."""
    rank = int(os.environ["RANK"])
    batches, train_batch = Loader.__iter__, loop.Trainer._train_batch

    def fewer(self):
        every = list(batches(self))
        return iter(every[: len(every) - 2 * rank])

    def record(self, batch, is_last):
        with open(f"{folder}/cuts.{rank}.jsonl", "a") as f:
            ids = [cut.id for cut in batch["cuts"]]
            f.write(json.dumps([self.state.epoch, ids]) + "\n")
        train_batch(self, batch, is_last)

    Loader.__iter__, loop.Trainer._train_batch = fewer, record
    command.main(["--config", config])


def compute_gradients(config, world: World, batches: int) -> dict:
    """Return the gradients of an update of all training cuts, without dropout.

    Args:
      batches: of each process.
    """
    trainer = loop.Trainer(build_setup(config), world)
    trainer.student.eval()
    cuts = list(trainer.setup.train_stream)[world.rank :: world.size]
    for n in range(batches):
        batch = trainer.loader.load(CutSet.from_cuts(cuts[n::batches]))
        trainer._train_batch(batch, n == batches - 1)
    trainer._update()
    return {name: p.grad for name, p in trainer.student.trainable()}


def run_gradients(config: str, output: str) -> None:
    """Write the gradients of an update of two batches in each process."""
    world = init_world("cpu")
    found = compute_gradients(parse_config(["--config", config]), world, 2)
    if world.is_main:
        torch.save(found, output)
    world.barrier()


def run_sums(heartbeat: float, patience: float, failing: int, message: str) -> None:
    """Sum over all ranks repeatedly; rank ``failing`` raises an error after a while."""
    world = init_world("cpu")
    with PeerWatch(world, heartbeat=heartbeat, patience=patience):
        for n in range(10**6):
            world.sum([1.0])
            if n == 20:
                os.write(1, b"adding\n")
            if n == 60 and world.rank == failing:
                raise ValueError(message)
            time.sleep(0.01)
