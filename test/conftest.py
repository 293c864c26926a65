"""Fixtures that every room shares: the real corpus, and a clean process state."""

import contextlib
import logging
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe import ROOT, locked_recipe

# Fixtures of all folders: a fixture that two conftests import is built twice.
pytest_plugins = ["error_messages", "students", "real_shar", "real_teachers"]


@contextlib.contextmanager
def restored_state() -> Iterator[None]:
    """Restore the global state of the process that the block may have changed.

    Threads, default dtype, environment, current folder, random states and logging.
    """
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    environment, folder = dict(os.environ), os.getcwd()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    root = logging.getLogger()
    level, handlers, disabled = root.level, root.handlers[:], root.manager.disable
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        os.chdir(folder)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        root.setLevel(level)
        # pytest replaces its own handlers between the phases of a test.
        for handler in [h for h in root.handlers if h not in handlers]:
            if type(handler) is logging.StreamHandler:
                root.removeHandler(handler)
        logging.disable(disabled)


@pytest.fixture(autouse=True)
def clean_process():
    """Restore the global state after every test, so that tests run in any order."""
    with restored_state():
        yield


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """Restore the global state after every fixture that is shared by several tests."""
    if fixturedef.scope == "function":
        yield
        return
    with restored_state():
        yield


def prepare(*options: str, corpus: str = "asterisk") -> Path:
    """Run stages of prepare.sh and return the recipe's folder.

    Stages that are done already take no time.
    """
    folder = ROOT / "egs" / corpus / "KD"
    with locked_recipe():
        command = ["bash", str(folder / "prepare.sh"), *options]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return folder


@pytest.fixture(scope="session")
def asterisk() -> Path:
    """Folder of the Asterisk recipe, with download/asterisk and data."""
    return prepare("--unlabelled", "none")


@pytest.fixture(scope="session")
def asterisk_unlabelled() -> Path:
    """Folder of the Asterisk recipe, also with the quick unlabelled set."""
    return prepare("--unlabelled", "quick")


@pytest.fixture(scope="session")
def adventure_packages() -> Path:
    """The folder of the unpacked packages of the adventure corpus."""
    return prepare("--stop-stage", "0", corpus="adventure") / "download/packages"


@pytest.fixture(scope="session")
def adventure() -> Path:
    """The recipe's folder with its manifests; the first time takes minutes."""
    return prepare("--stop-stage", "1", corpus="adventure")
