"""The SHA-256 of a model file, remembered beside it."""

from pathlib import Path
from typing import Union

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
