"""Files that are whole or absent: written aside, then renamed."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Iterator, Union

Pathlike = Union[str, Path]


@contextlib.contextmanager
def write_aside(path: Pathlike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success.

    The suffix of the name is kept, since writers choose a format by it.  When the
    block raises, the temporary file is removed and ``path`` is what it was before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield aside
        with open(aside, "rb") as f:
            os.fsync(f.fileno())
        os.replace(aside, path)
    finally:
        if aside.exists():
            aside.unlink()


@contextlib.contextmanager
def sole_user(folder: Pathlike) -> Iterator[None]:
    """Hold ``folder`` for this process until the block or the process ends.

    Raises:
      ValueError: if another process holds it.
    """
    path = Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as f:
        try:
            # Of this process alone: the loader's workers do not inherit it.
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as e:
            raise ValueError(
                f"{folder}: another process is at work there; wait for it, end it, or "
                "choose another folder"
            ) from e
        except OSError as e:
            logging.warning("%s: cannot be locked (%s); use it once", folder, e)
        yield


def remove_partial(folder: Pathlike) -> None:
    """Remove what a killed process was writing aside in ``folder``.

    Only for a folder that no other process writes to.
    """
    for path in Path(folder).glob(".*.partial.*"):
        path.unlink()


@contextlib.contextmanager
def naming_write(path: Pathlike, remedy: str) -> Iterator[None]:
    """Give an error in writing ``path`` the file's name and the remedy.

    Raises:
      OSError: for any error of the system in the block.
    """
    try:
        yield
    except OSError as e:
        raise OSError(f"{path}: could not be written ({e}); {remedy}") from e


def write_text(path: Pathlike, text: str) -> None:
    """Write ``text`` (UTF-8) whole or not at all."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Pathlike, obj: Any) -> None:
    """Write ``obj`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Pathlike) -> Any:
    """Read a JSON file.

    Raises:
      ValueError: if the file is not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}: not a JSON file ({e})") from e


def sha256_file(path: Pathlike) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
