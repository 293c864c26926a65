"""Copies of the recipes in which Python records commands instead of running them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small_librispeech
import yaml

librispeech = small_librispeech.librispeech  # fixtures

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f"""#!/usr/bin/env bash
if [[ $* == "-m icefall_kd.core.cpu" ]]; then echo 2; exit; fi
if [[ $2 == icefall_kd.bin.recipe_commands ]]; then exec {sys.executable} "$@"; fi
printf "%s\\n" "$*" >>"$COMMANDS"
"""


def copy_recipe(corpus, folder):
    """Return a function that runs a script in a copy of the recipe."""
    recipe = folder / "egs" / corpus / "KD"
    shutil.copytree(ROOT / "local", folder / "local")
    for name in ("conf", "local"):
        shutil.copytree(ROOT / "egs" / corpus / "KD" / name, recipe / name)
    for script in (ROOT / "egs" / corpus / "KD").glob("*.sh"):
        shutil.copy(script, recipe)
    for room in ("training", "export"):  # files that run_once --code names
        shutil.copytree(ROOT / "icefall_kd" / room, folder / "icefall_kd" / room)
    for profile in yaml.safe_load((recipe / "conf/profiles.yaml").read_text()).values():
        unlabelled = profile.get("unlabelled", [])
        pseudo_labelled = [f"{s}{profile['pseudo_suffix']}" for s in unlabelled]
        sets = [*profile["labelled"], *unlabelled, *pseudo_labelled]
        for name in [*sets, profile.get("dev_set", "dev")]:
            (recipe / "data/shar" / name).mkdir(parents=True, exist_ok=True)
    python = folder / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    commands = folder / "commands"
    env = {
        "ICEFALL_KD_VENV": str(folder / "venv"),
        "COMMANDS": str(commands),
        "PYTHONPATH": str(ROOT),
    }

    def run(script, *options):
        done = subprocess.run(
            ["bash", str(recipe / script), *options],
            env={**os.environ, **env},
            text=True,
            capture_output=True,
        )
        return done, commands.read_text().splitlines() if commands.is_file() else []

    def add_fields(set_name, *names):
        for name in names:
            path = recipe / f"data/shar/{set_name}.fields" / name / f"{name}.json"
            path.parent.mkdir(parents=True)
            path.touch()

    run.recipe, run.env, run.add_fields = recipe, env, add_fields
    return run


@pytest.fixture
def run_script(tmp_path):
    """``run_script("train.sh", ...)`` returns the run and all commands so far.

    ``run_script.recipe`` is the folder of the copy, ``run_script.env`` its environment
    variables.  ``run_script.add_fields("train", ...)`` creates the files by which
    train.sh recognises fields.
    """
    return copy_recipe("asterisk", tmp_path)


@pytest.fixture
def run_librispeech(tmp_path):
    """``run_script`` of the LibriSpeech recipe."""
    return copy_recipe("librispeech", tmp_path)


@pytest.fixture
def run_adventure(tmp_path):
    """``run_script`` of the adventure recipe."""
    return copy_recipe("adventure", tmp_path)
