"""A copy of the recipe whose Python only notes what it is asked for."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "egs/asterisk/KD"
PYTHON = '#!/usr/bin/env bash\nprintf "%s\\n" "$*" >>"$COMMANDS"\n'


@pytest.fixture
def run_script(tmp_path):
    """``run_script("train.sh", ...)``: the run, and the commands since the first one.

    The function has the folder of the copy as ``recipe``.
    """
    shutil.copytree(ROOT / "local", tmp_path / "local")
    for name in ("conf", "local"):
        shutil.copytree(ROOT / RECIPE / name, tmp_path / RECIPE / name)
    for script in (ROOT / RECIPE).glob("*.sh"):
        shutil.copy(script, tmp_path / RECIPE)
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    told = tmp_path / "commands"
    env = {"ICEFALL_KD_VENV": str(tmp_path / "venv"), "COMMANDS": str(told)}

    def run(script, *options):
        done = subprocess.run(
            ["bash", str(tmp_path / RECIPE / script), *options],
            env={**os.environ, **env},
            text=True,
            capture_output=True,
        )
        return done, told.read_text().splitlines() if told.is_file() else []

    run.recipe = tmp_path / RECIPE
    return run
