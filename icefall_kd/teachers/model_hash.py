"""The SHA-256 of a model: of its file, remembered beside it, or of its tensors."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Union

from torch import Tensor

from icefall_kd.io import read_json, sha256_file, write_json


def model_sha256(path: Union[str, Path]) -> str:
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


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
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
