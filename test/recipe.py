"""Lock the folder of the Asterisk recipe, and load the local scripts of recipes."""

import contextlib
import fcntl
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "egs/asterisk/KD"


def load_script(name: str, corpus: str = "asterisk") -> ModuleType:
    """Return ``egs/<corpus>/KD/local/<name>.py`` as a module."""
    path = ROOT / "egs" / corpus / "KD/local" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def locked_recipe() -> Iterator[Path]:
    """Yield the folder of the recipe to one process at a time; tests write to it."""
    lock = RECIPE / "data/.tests.lock"
    lock.parent.mkdir(exist_ok=True)
    with open(lock, "w", encoding="utf-8") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield RECIPE
