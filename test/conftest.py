"""Fixtures that every room shares: the real corpus, as the recipe prepares it."""

import subprocess
from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parents[1] / "egs/asterisk/KD"


def prepare(*options: str) -> Path:
    """Run the recipe's own stages; what is done already takes no time."""
    command = ["bash", str(RECIPE / "prepare.sh"), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return RECIPE


@pytest.fixture(scope="session")
def asterisk() -> Path:
    """The recipe's folder; below it lie download/asterisk and data/..."""
    return prepare("--pool", "none")


@pytest.fixture(scope="session")
def asterisk_pool() -> Path:
    """The recipe's folder with the quick slice of the unlabelled pool too."""
    return prepare("--pool", "quick")
