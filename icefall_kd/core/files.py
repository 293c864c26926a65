"""Read files, and write them atomically: a file is complete or unchanged.

A path is local or a URL of fsspec (``s3://``, ``gs://``, ``https://``, ``memory://``),
see :func:`as_path`.
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

# Temporary files are named .<host>.<process id>.partial.<name>.
_TEMPORARY = re.compile(r"\.([A-Za-z0-9-]*)\.(\d+)\.partial\..+")
_STALE_AGE = 24 * 3600  # s since the last write, for a process of another machine


def as_path(path: Pathlike) -> Path:
    """Return a path object for a local path or a URL.

    Raises:
      ValueError: if the package that opens the URL is not installed, or for lhotse's
        ``pipe:<command>``, which cannot be listed.
    """
    if isinstance(path, str) and path.startswith("pipe:"):
        raise ValueError(
            f"{path}: a pipe is not supported; give the folder as a local path or a URL"
        )
    if not isinstance(path, str):
        return path  # a Path, or a UPath, which may not be a Path
    if "://" not in path:
        return Path(path)
    try:
        from upath import UPath

        return UPath(path)
    except ImportError as e:
        raise ValueError(
            f"{path}: a URL needs two packages: pip install universal_pathlib, and the "
            "fsspec package of its protocol (s3fs, gcsfs, aiohttp)"
        ) from e


def is_local(path: Path) -> bool:
    """Return whether ``path`` is in the local file system, not a URL."""
    return not getattr(path, "protocol", "")


@contextlib.contextmanager
def open_text(path: Pathlike) -> Iterator[TextIO]:
    """Open a UTF-8 text file for reading, compressed (``.gz``) or not.

    A byte order mark is skipped.  Line ends (LF, CR LF, CR) are read as LF.

    Raises:
      ValueError: if the text is not UTF-8.
    """
    path = as_path(path)
    try:
        with _open_binary(path) as binary:
            with io.TextIOWrapper(binary, encoding="utf-8-sig") as text:
                yield text
    except UnicodeDecodeError as e:
        raise _encoding_error(path) from e


@contextlib.contextmanager
def _open_binary(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, decompressed when its name ends in ``.gz``."""
    with path.open("rb") as raw:
        yield gzip.open(raw) if path.suffix == ".gz" else raw


def read_text(path: Pathlike) -> str:
    """Return the text of a file, read by :func:`open_text`.

    Raises:
      ValueError: if the text is not UTF-8 or contains a null character.
    """
    with open_text(path) as f:
        text = f.read()
    if "\0" in text:  # UTF-16 of ASCII without a byte order mark is valid UTF-8
        raise _encoding_error(as_path(path))
    return text


def _encoding_error(path: Path) -> ValueError:
    """Return the error for a file in another encoding, with its first bad line."""
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
    """Yield a temporary local path; move that file to ``path`` if the block succeeds.

    If the block raises, the temporary file is removed and ``path`` is unchanged.  The
    temporary name has the suffix of ``path``, because some writers choose a format by
    the suffix.  A file for a URL is copied; that is atomic if the store's writes are,
    as in object stores.
    """
    path = as_path(path)
    if not is_local(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            yield temporary
            with temporary.open("rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{_host()}.{os.getpid()}.partial.{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        if temporary.exists():
            temporary.unlink()


def move_file(source: Pathlike, target: Pathlike) -> None:
    """Move a file, within a store or between local file systems.

    An existing ``target`` is replaced, and ``target`` is never incomplete.  Several
    processes may move the same file at the same time.
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
            with write_atomically(target) as temporary:
                shutil.copyfile(source, temporary)
            source.unlink()
    except FileNotFoundError:  # another process moved it
        if not target.exists():
            raise


def _host() -> str:
    """Return the host name in the characters of `_TEMPORARY`."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


def remove_stale_temporaries(folder: Pathlike, name: str) -> None:
    """Remove the temporary files of ``name`` whose processes have ended.

    Other processes may write to the folder at the same time.  A file that has not
    changed for a day is removed too, as its process may be on another machine.
    """
    folder = as_path(folder)
    if not is_local(folder):  # a store has no temporary files
        return
    for path in folder.glob(f".*.partial.{name}"):
        match = _TEMPORARY.fullmatch(path.name)
        try:
            has_ended = match and match[1] == _host() and not _is_alive(int(match[2]))
            if has_ended or time.time() - path.stat().st_mtime > _STALE_AGE:
                path.unlink()
        except FileNotFoundError:  # another process removed it
            pass


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of another user
        return True
    return True


@contextlib.contextmanager
def lock_folder(folder: Pathlike) -> Iterator[None]:
    """Lock ``folder`` for this process until the block or the process ends.

    A file system without locks gives a warning.

    Raises:
      ValueError: if another process has the lock.
    """
    path = Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as f:
        try:
            # Unlike flock, lockf is not inherited by the workers of the data loader.
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as e:
            raise ValueError(
                f"{folder}: another process uses this folder; wait for it, end it, or "
                "choose another folder"
            ) from e
        except OSError as e:
            logging.warning(
                "%s: cannot lock this folder (%s); start one process in it", folder, e
            )
        yield


def remove_temporary_files(folder: Pathlike) -> None:
    """Remove all temporary files in a folder that no other process writes to."""
    for path in Path(folder).glob(".*.partial.*"):
        path.unlink()


@contextlib.contextmanager
def explain_failed_write(path: Pathlike, remedy: str) -> Iterator[None]:
    """Add the path and a remedy to an OSError that the block raises."""
    try:
        yield
    except OSError as e:
        raise OSError(f"{path}: cannot be written ({e}); {remedy}") from e


def write_text(path: Pathlike, text: str) -> None:
    """Write ``text`` in UTF-8, atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Pathlike, obj: Any) -> None:
    """Write ``obj`` as indented JSON, atomically."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Pathlike) -> Any:
    """Read a JSON file.

    Raises:
      ValueError: if the file is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}: not a JSON file ({e})") from e


def read_yaml(path: Pathlike) -> Any:
    """Read a YAML file.

    Raises:
      FileNotFoundError: if it is missing.
      ValueError: if the file is not YAML.
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
