"""Real processes of the training command, ended by signals and started again."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from icefall_kd.core.config import to_dict
from icefall_kd.training.checkpoint import load_newest_checkpoint
from icefall_kd.transducer.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def long(config):
    """Enough short batches, from a worker, to be hit in the middle of an epoch."""
    data = dataclasses.replace(config.data, max_duration=3.0, num_workers=1)
    return dataclasses.replace(config, data=data, num_epochs=4, save_every_n=3)


def start(config):
    """Return a process of the training command."""
    path = Path(config.exp_dir).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(to_dict(config)))
    return subprocess.Popen(
        [sys.executable, "-m", "icefall_kd.bin.train", "--config", str(path)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        start_new_session=True,
    )


def metrics(config):
    """Lines of the run without what depends on the machine's speed."""
    path = Path(config.exp_dir) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("speed", "eta")}
        for line in lines
        if line.endswith("}")
    ]


def end_at(process, config, step, number):
    """Send a signal once ``step`` is in the metrics; return status and log.

    It goes to the whole group, as a terminal and ``kill 0`` send it, so that the
    loader's worker gets it as well.
    """
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        lines = metrics(config)
        if lines and lines[-1]["step"] >= step:
            os.killpg(process.pid, number)
            break
        time.sleep(0.005)
    _, log = process.communicate(timeout=240)
    return process.returncode, log


def test_a_run_ended_by_signals_equals_the_uninterrupted_one(long, tmp_path):
    _, log = (whole := start(long)).communicate(timeout=240)
    assert whole.returncode == 0, log[-3000:]
    broken = dataclasses.replace(long, exp_dir=str(tmp_path / "broken"))

    last = 2
    for number, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        status, log = end_at(start(broken), broken, last + 3, number)
        assert status == expected and "Traceback" not in log, log[-3000:]
        last = metrics(broken)[-1]["step"]
        assert f"after update {last}, wrote checkpoint-{last}.pt" in log
        assert load_newest_checkpoint(broken.exp_dir)["state"]["step"] == last

    status, log = end_at(start(broken), broken, last + 7, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert re.search(rf"resuming from epoch \d step {last}\n", log), log[-3000:]

    _, log = (rest := start(broken)).communicate(timeout=240)
    assert rest.returncode == 0 and "resuming from" in log, log[-3000:]
    assert metrics(broken) == metrics(long)
    name = f"epoch-{long.num_epochs}.pt"
    there, here = (load_checkpoint(Path(c.exp_dir) / name) for c in (long, broken))
    for part in ("model", "model_avg", "heads"):
        for key, value in there[part].items():
            assert torch.equal(value, here[part][key]), key
    assert {**there["state"], "seconds": 0} == {**here["state"], "seconds": 0}
