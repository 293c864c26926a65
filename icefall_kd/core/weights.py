"""Loads what torch.save wrote, as long as it is tensors and plain types.

A pickle may name any function and have it called while it is read, so a checkpoint from
elsewhere could run anything.  torch has ``weights_only`` against that from 1.13 on, but
that of 1.13 does not know Python's floats and is of no use there.

The SHA-256 of a model: of its file, remembered beside it, or of its tensors.
"""

import contextlib
import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any, ContextManager, Union

import torch
from torch import Tensor

from icefall_kd.core.files import Pathlike, read_json, sha256_file, write_json

ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    # icefall keeps its options beside the weights, the experiment's folder among them.
    ("pathlib", "PosixPath"),
}


def load_weights_only(path: Path) -> Any:
    """Return the content of a file of torch.save, on the CPU.

    Raises:
      Exception: whatever zipfile, torch or pickle raise for a damaged file;
        ``pickle.UnpicklingError`` for one that asks for anything else than tensors
        and plain types.  Nothing that the file names has been called then.
    """
    with zipfile.ZipFile(path) as file:  # torch leaves the checksums alone
        damaged = file.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged} does not match")
    if int(torch.__version__.split(".")[0]) >= 2:
        with _allowing_paths():
            return torch.load(path, map_location="cpu", weights_only=True)
    # torch 1.13's load() ignores its pickle_module, therefore one level below.
    with torch.serialization._open_zipfile_reader(str(path)) as reader:
        module = SimpleNamespace(Unpickler=_Unpickler)
        return torch.serialization._load(reader, "cpu", module, encoding="utf-8")


def load_dict(path: Pathlike, what: str, keys: set[str], make: str) -> dict[str, Any]:
    """Return the dict of a file that a command of ours wrote.

    Args:
      what: it holds, for messages.
      keys: of the dict.
      make: the command that writes such a file.
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it holds something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such {what}; make one with '{make}'")
    saved = load_weights_only(Path(path))
    if not isinstance(saved, dict) or set(saved) != keys:
        raise ValueError(f"{path} is no {what}")
    return saved


def _allowing_paths() -> ContextManager:
    """Return a context in which torch's own loader takes paths (from torch 2.5 on)."""
    if hasattr(torch.serialization, "safe_globals"):
        return torch.serialization.safe_globals([PosixPath])
    return contextlib.nullcontext()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what the file names, if it is needed for tensors."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, not for data")
        return super().find_class(module, name)


def cached_sha256(path: Union[str, Path]) -> str:
    """Return the SHA-256 of ``path``; hash again only when the file has changed.

    The value is kept in ``<path>.sha256.json`` with the size and the modification
    time that it belongs to; a folder that cannot be written is no error.
    """
    path = Path(path)
    stat = path.stat()
    state = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    note = path.with_name(path.name + ".sha256.json")
    if note.is_file():
        known = read_json(note)
        if {k: known.get(k) for k in state} == state:
            return known["sha256"]
    state["sha256"] = sha256_file(path)
    try:
        write_json(note, state)
    except OSError:  # a read-only model folder
        pass
    return state["sha256"]


def sha256_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, shapes and dtypes.

    It does not depend on the file that they were in: the averaged model has one hash
    whether it comes from a training checkpoint, from ours or in icefall's form.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        x = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(x.shape)} {x.dtype}\n".encode())
        digest.update(x.numpy().tobytes())
    return digest.hexdigest()
