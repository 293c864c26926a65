"""Load files of ``torch.save`` safely; hash files and tensors of models.

A pickle can call any function while it is read, so a checkpoint from elsewhere could
run code.  This module loads only tensors and plain types.  ``weights_only`` of torch
1.13 rejects floats, so this module has an unpickler for torch 1.
"""

import contextlib
import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any, ContextManager

import torch
from torch import Tensor

from icefall_kd.core.files import Pathlike, read_json, sha256_file, write_json

ALLOWED = {  # (module, name) that a file may refer to
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    # icefall stores its options with the weights; exp_dir is a path.
    ("pathlib", "PosixPath"),
}


def load_weights_only(path: Path) -> Any:
    """Return the content of a file of torch.save, on the CPU.

    Raises:
      Exception: any error of zipfile, torch or pickle for a damaged file.
      pickle.UnpicklingError: if the file refers to any other class or function, which
        is not called.
    """
    with zipfile.ZipFile(path) as file:  # torch does not check the checksums
        damaged = file.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged} does not match")
    if int(torch.__version__.split(".")[0]) >= 2:
        with _allow_paths():
            return torch.load(path, map_location="cpu", weights_only=True)
    # torch.load of 1.13 ignores pickle_module; torch.serialization._load uses it.
    with torch.serialization._open_zipfile_reader(str(path)) as reader:
        module = SimpleNamespace(Unpickler=_SafeUnpickler)
        return torch.serialization._load(reader, "cpu", module, encoding="utf-8")


def load_dict(
    path: Pathlike, kind: str, keys: set[str], command: str
) -> dict[str, Any]:
    """Return the dict of a file that a command of this package wrote.

    Args:
      kind: noun for the content, for error messages.
      keys: all keys of the dict.
      command: command that writes such a file, for error messages.
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if its content is not a dict with these keys.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such {kind}; write one with '{command}'")
    saved = load_weights_only(Path(path))
    if not isinstance(saved, dict) or set(saved) != keys:
        raise ValueError(f"{path}: not a {kind}; write one with '{command}'")
    return saved


def _allow_paths() -> ContextManager:
    """Return a context in which torch 2.5 and later load paths."""
    if hasattr(torch.serialization, "safe_globals"):
        return torch.serialization.safe_globals([PosixPath])
    return contextlib.nullcontext()


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return the class or function ``name``, if it is in `ALLOWED`."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}, which is not a tensor or plain type"
            )
        return super().find_class(module, name)


def cached_sha256(path: Pathlike) -> str:
    """Return the SHA-256 of a file; compute it only if the file has changed.

    If the folder is writable, ``<path>.sha256.json`` stores the value with the file's
    size and modification time.
    """
    path = Path(path)
    stat = path.stat()
    state = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    cache = path.with_name(path.name + ".sha256.json")
    if cache.is_file():
        known = read_json(cache)
        if {k: known.get(k) for k in state} == state:
            return known["sha256"]
    state["sha256"] = sha256_file(path)
    with contextlib.suppress(OSError):  # a read-only model folder
        write_json(cache, state)
    return state["sha256"]


def sha256_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, shapes and dtypes.

    It does not depend on the file format: the same weights have the same hash in a
    training checkpoint, in ``pretrained.pt`` and in a file of icefall.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        x = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(x.shape)} {x.dtype}\n".encode())
        digest.update(x.numpy().tobytes())
    return digest.hexdigest()
