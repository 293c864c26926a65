"""Files that are whole or absent: written aside, then renamed.

A path is a local one, or a URL that fsspec knows (``s3://``, ``gs://``, ``https://``,
``memory://``), see :func:`as_path`.
"""

import contextlib
import errno
import fcntl
import gzip
import hashlib
import io
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO, Union

Pathlike = Union[str, Path]

_ASIDE = re.compile(r"\.([A-Za-z0-9-]*)\.(\d+)\.partial\..+")
_ABANDONED = 24 * 3600  # s without a change, after which a partial file is nobody's


def as_path(path: Pathlike) -> Path:
    """Return a path object for a local path or a URL.

    lhotse's ``pipe:<command>`` forms are no paths here: a folder must be listed and its
    files looked at, which a command that writes to a pipe cannot do.

    Raises:
      ValueError: if it is a URL and the package that opens it is not installed.
    """
    if isinstance(path, str) and path.startswith("pipe:"):
        raise ValueError(
            f"{path}: a pipe cannot be listed; give the folder itself, as a local path "
            "or a URL"
        )
    if not isinstance(path, str):
        return path  # a Path or a UPath, which need not be a Path
    if "://" not in path:
        return Path(path)
    try:
        from upath import UPath

        return UPath(path)
    except ImportError as e:
        raise ValueError(
            f"{path} is a URL: pip install universal_pathlib, and the fsspec package "
            "of its protocol (s3fs, gcsfs, aiohttp)"
        ) from e


def is_local(path: Path) -> bool:
    """Return whether the file system of this machine holds ``path``."""
    return not getattr(path, "protocol", "")


@contextlib.contextmanager
def open_text(path: Pathlike) -> Iterator[TextIO]:
    """Open a UTF-8 text file for reading, compressed (``.gz``) or not.

    A byte order mark is skipped; a line may end in LF, CR LF or CR.

    Raises:
      ValueError: if the text is not UTF-8; the message names file and line.
    """
    path = as_path(path)
    try:
        with _open_binary(path) as binary:
            with io.TextIOWrapper(binary, encoding="utf-8-sig") as text:
                yield text
    except UnicodeDecodeError as e:
        raise _not_utf8(path) from e


@contextlib.contextmanager
def _open_binary(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, decompressed when its name ends in ``.gz``."""
    with path.open("rb") as raw:
        yield gzip.open(raw) if path.suffix == ".gz" else raw


def read_text(path: Pathlike) -> str:
    """Return the text of a UTF-8 file, read as by :func:`open_text`; lines end in LF.

    Raises:
      ValueError: if the text is not UTF-8; the message names file and line.
    """
    with open_text(path) as f:
        text = f.read()
    if "\0" in text:  # UTF-16 of ASCII, without a byte order mark, is valid UTF-8
        raise _not_utf8(as_path(path))
    return text


def _not_utf8(path: Path) -> ValueError:
    """Return the error of a text in another encoding, with its first bad line."""
    with _open_binary(path) as f:
        data, *_ = f.read().partition(b"\0")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as e:
        data = data[: e.start]
    line = len(re.findall(rb"\r\n?|\n", data)) + 1
    return ValueError(
        f"{path}:{line}: not UTF-8 text; convert the file, for example with "
        "'iconv -f LATIN1 -t UTF-8' (or -f UTF-16)"
    )


@contextlib.contextmanager
def write_atomically(path: Pathlike) -> Iterator[Path]:
    """Yield a temporary local path; it becomes ``path`` on success.

    The suffix of the name is kept, since writers choose a format by it.  When the
    block raises, the temporary file is removed and ``path`` is what it was before.
    Beside a local ``path`` the file is renamed; to a URL it is copied, and becomes
    visible when it is complete if the store works so (object stores do).
    """
    path = as_path(path)
    if not is_local(path):
        with tempfile.TemporaryDirectory() as folder:
            aside = Path(folder) / path.name
            yield aside
            with aside.open("rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{_host()}.{os.getpid()}.partial.{path.name}")
    try:
        yield aside
        with open(aside, "rb") as f:
            os.fsync(f.fileno())
        os.replace(aside, path)
    finally:
        if aside.exists():
            aside.unlink()


def move_file(source: Pathlike, target: Pathlike) -> None:
    """Move a file within a file system or a store, or to another file system.

    ``target`` is replaced, whole or not at all.  Several processes may move the same
    file at the same time.
    """
    source, target = as_path(source), as_path(target)
    try:
        if not is_local(source):
            target.unlink(missing_ok=True)
            source.rename(target)
            return
        try:
            os.replace(source, target)
        except OSError as e:
            if e.errno != errno.EXDEV:
                raise
            with write_atomically(target) as aside:
                shutil.copyfile(source, aside)
            source.unlink()
    except FileNotFoundError:  # another process was faster
        if not target.exists():
            raise


def _host() -> str:
    """Return this machine's name, without what a file name could be misread by."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


def remove_stale_temporaries(folder: Pathlike, name: str) -> None:
    """Remove what dead processes were writing aside of the file ``name``.

    For a folder that others may write to at the same time.  A process of this machine
    is asked for; one of another counts as dead when it wrote nothing for a day.
    """
    folder = as_path(folder)
    if not is_local(folder):  # nothing is written aside there
        return
    for path in folder.glob(f".*.partial.{name}"):
        match = _ASIDE.fullmatch(path.name)
        try:
            if match and match[1] == _host() and not _alive(int(match[2])):
                path.unlink()
            elif time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()
        except FileNotFoundError:  # another one was faster
            pass


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, and another user's
        return True
    return True


@contextlib.contextmanager
def lock_folder(folder: Pathlike) -> Iterator[None]:
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


def remove_temporary_files(folder: Pathlike) -> None:
    """Remove what a killed process was writing aside in ``folder``.

    Only for a folder that no other process writes to.
    """
    for path in Path(folder).glob(".*.partial.*"):
        path.unlink()


@contextlib.contextmanager
def explain_failed_write(path: Pathlike, remedy: str) -> Iterator[None]:
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
    with write_atomically(path) as aside:
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
        return json.loads(read_text(path))
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}: not a JSON file ({e})") from e


def read_yaml(path: Pathlike) -> Any:
    """Read a YAML file.

    Raises:
      FileNotFoundError: if it is missing.
      ValueError: if the file is not YAML; the message names it.
    """
    import yaml

    try:
        return yaml.safe_load(read_text(path))
    except yaml.YAMLError as e:
        raise ValueError(f"{path}: not a YAML file ({e})") from e


def sha256_file(path: Pathlike) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    digest = hashlib.sha256()
    with as_path(path).open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
