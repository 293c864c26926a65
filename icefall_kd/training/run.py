"""One training run from its configuration to its last checkpoint."""

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
from icefall_kd.core.logs import LogFile, copy_log_to_file
from icefall_kd.training.checkpoint import newest_checkpoint
from icefall_kd.training.config import TrainConfig
from icefall_kd.training.interruptions import Peers, StopRequest
from icefall_kd.training.loop import Trainer
from icefall_kd.training.setup import prepare


def train(config: TrainConfig) -> None:
    """Train in ``config.exp_dir``, going on from its newest checkpoint if any.

    Raises:
      ValueError, FileNotFoundError: naming what is wrong, before data is read.
      OSError: if a file cannot be written.
      TrainingStoppedError: if too many batches in a row were not finite, a batch does
        not fit into memory, or another process of the job is gone.
      TrainingInterruptedError: if SIGINT or SIGTERM came; all that is needed is
        written.
    """
    with copy_log_to_file() as log:
        _train(config, log)


def _train(config: TrainConfig, log: LogFile) -> None:
    if config.num_threads > 0:
        torch.set_num_threads(config.num_threads)
    pick_device(config.device)  # refused now, not after the data is open
    exp_dir = Path(config.exp_dir)
    resume = newest_checkpoint(exp_dir)
    setup = prepare(config, resume)
    if resume is not None and resume["state"]["epoch"] >= config.num_epochs:
        logging.info(
            "%s has its %d epochs; nothing to do", exp_dir, resume["state"]["epoch"]
        )
        return
    world = init_world(config.device)
    with contextlib.ExitStack() as stack:
        stack.callback(close_world)
        stack.enter_context(Peers(world))
        if world.is_main:
            stack.enter_context(lock_folder(exp_dir))
            remove_temporary_files(exp_dir)
        log.open(exp_dir / "log", "log-train", world.rank, world.size)
        if world.is_main:
            (exp_dir / "done").unlink(missing_ok=True)  # of fewer epochs
            step = resume["state"]["step"] if resume is not None else 0
            plain = yaml.safe_dump(to_dict(setup.config), sort_keys=False)
            keep_version(exp_dir / "config.yaml", plain, step)
            facts = json.dumps(environment(), indent=2, ensure_ascii=False)
            keep_version(exp_dir / "environment.json", f"{facts}\n", step)
            logging.info("configuration:\n%s", plain)
        world.barrier()
        stop = StopRequest()
        trainer = Trainer(setup, world, resume, stop)
        with stop:  # only now is there something that an end at once would lose
            trainer.run()


def keep_version(path: Path, text: str, step: int) -> None:
    """Write a file of a run; keep what it held before, with the step in its name.

    So config.yaml is the newest, and config.100.yaml what the run had up to update 100.

    Args:
      step: updates that the run has made.
    """
    kept = path.with_name(f"{path.stem}.{step}{path.suffix}")
    if step and path.is_file() and not kept.exists():
        old = path.read_text(encoding="utf-8")
        if old != text:
            write_text(kept, old)
    write_text(path, text)


def environment() -> dict:
    """Return what a result depends on besides its configuration."""
    return {
        "command": sys.argv,
        "commit": git_commit(),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: version_of(name) for name in ("torch", "k2", "lhotse")},
    }


def version_of(package: str) -> str:
    """Return the installed version, or "absent"."""
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
