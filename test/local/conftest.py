"""Copies of the recipes whose Python only notes what it is asked for."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import real_teachers
import small_librispeech

librispeech = small_librispeech.librispeech  # fixtures
tiny_dir = real_teachers.tiny_dir

ROOT = Path(__file__).resolve().parents[2]
PYTHON = """#!/usr/bin/env bash
if [[ $* == "-m icefall_kd.core.cpu" ]]; then echo 2; exit; fi
printf "%s\\n" "$*" >>"$COMMANDS"
"""


def copy_recipe(corpus, folder):
    """Return a function that runs a script of the copy, as ``run_script`` does."""
    recipe = folder / "egs" / corpus / "KD"
    shutil.copytree(ROOT / "local", folder / "local")
    for name in ("conf", "local"):
        shutil.copytree(ROOT / "egs" / corpus / "KD" / name, recipe / name)
    for script in (ROOT / "egs" / corpus / "KD").glob("*.sh"):
        shutil.copy(script, recipe)
    python = folder / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    told = folder / "commands"
    env = {"ICEFALL_KD_VENV": str(folder / "venv"), "COMMANDS": str(told)}

    def run(script, *options):
        done = subprocess.run(
            ["bash", str(recipe / script), *options],
            env={**os.environ, **env},
            text=True,
            capture_output=True,
        )
        return done, told.read_text().splitlines() if told.is_file() else []

    run.recipe = recipe
    return run


@pytest.fixture
def run_script(tmp_path):
    """``run_script("train.sh", ...)``: the run, and the commands since the first one.

    The function has the folder of the copy as ``recipe``.
    """
    return copy_recipe("asterisk", tmp_path)


@pytest.fixture
def run_librispeech(tmp_path):
    """``run_script`` of the other recipe."""
    return copy_recipe("librispeech", tmp_path)
