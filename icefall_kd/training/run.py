"""One training run, from its configuration to its last checkpoint."""

import contextlib
import json
import logging
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch
import yaml

from icefall_kd.core.config import to_dict
from icefall_kd.core.distributed import close_world, init_world, pick_device
from icefall_kd.core.files import lock_folder, remove_temporary_files, write_text
from icefall_kd.core.logs import LogFile
from icefall_kd.training.checkpoint import load_newest_checkpoint
from icefall_kd.training.config import TrainConfig
from icefall_kd.training.interruptions import PeerWatch, StopRequest
from icefall_kd.training.loop import Trainer
from icefall_kd.training.setup import build_setup


def train(config: TrainConfig) -> None:
    """Train in ``config.exp_dir``, from its newest checkpoint if it has one.

    Raises:
      ValueError, FileNotFoundError: if the configuration, the data or a checkpoint is
        wrong; raised before any audio is read.
      OSError: if a file cannot be written.
      TrainingStoppedError: if training cannot continue, for example after too many
        non-finite batches, or if another process of the job is lost.
      TrainingInterruptedError: after SIGINT or SIGTERM, once a checkpoint is written.
    """
    with LogFile() as log:
        _train(config, log)


def _train(config: TrainConfig, log: LogFile) -> None:
    if config.num_threads > 0:
        torch.set_num_threads(config.num_threads)
    pick_device(config.device)  # raises before the data is opened
    exp_dir = Path(config.exp_dir)
    resume = load_newest_checkpoint(exp_dir)
    setup = build_setup(config, resume)
    if resume is not None and resume["state"]["epoch"] >= config.num_epochs:
        logging.info(
            "%s: all %d epochs are finished, nothing to do",
            exp_dir,
            resume["state"]["epoch"],
        )
        return
    world = init_world(config.device)
    with contextlib.ExitStack() as stack:
        stack.callback(close_world)
        stack.enter_context(PeerWatch(world))
        if world.is_main:
            stack.enter_context(lock_folder(exp_dir))
            remove_temporary_files(exp_dir)
        log.open(exp_dir / "log", "log-train", world.rank, world.size)
        if world.is_main:
            (exp_dir / "done").unlink(missing_ok=True)  # of a run with fewer epochs
            step = resume["state"]["step"] if resume is not None else 0
            text = yaml.safe_dump(to_dict(setup.config), sort_keys=False)
            write_version(exp_dir / "config.yaml", text, step)
            logging.info("configuration:\n%s", text)
            text = json.dumps(describe_environment(), indent=2, ensure_ascii=False)
            write_version(exp_dir / "environment.json", f"{text}\n", step)
        world.barrier()
        stop = StopRequest()
        trainer = Trainer(setup, world, resume, stop)
        with stop:  # only here: before training starts a signal loses no work
            trainer.run()


def write_version(path: Path, text: str, step: int) -> None:
    """Write a file of a run; keep its previous version under another name.

    config.yaml is in use now, config.100.yaml was in use up to update 100.

    Args:
      step: updates so far.
    """
    previous = path.with_name(f"{path.stem}.{step}{path.suffix}")
    if step and path.is_file() and not previous.exists():
        old = path.read_text(encoding="utf-8")
        if old != text:
            write_text(previous, old)
    write_text(path, text)


def describe_environment() -> dict:
    """Return the command, the commit, and versions of software and hardware."""
    return {
        "command": sys.argv,
        "commit": git_commit(),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {
            name: installed_version(name) for name in ("torch", "k2", "lhotse")
        },
    }


def installed_version(package: str) -> str:
    """Return the version of an installed package, or "absent"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def git_commit() -> str:
    """Return the commit of this code, with "-dirty" after changes; "" if unknown."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        return subprocess.run(
            command,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
