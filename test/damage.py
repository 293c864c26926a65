"""Damage a field, with or without valid checksums."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any, Callable

import numpy as np

from icefall_kd.core.files import sha256_file
from icefall_kd.fields.format import info_path, state_path

Members = list[tuple[str, bytes]]  # of a tar: name, content


def edit(path: Path, change: Callable[[dict], Any]) -> None:
    """Apply ``change`` to the object of a JSON file."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def flip_a_bit(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def change_members(
    folder: Path, field: str, shard: str, change: Callable[[Members], Members]
) -> None:
    """Rewrite the tar of a shard, and update all checksums."""
    path = folder / f"{field}.{shard}.tar"
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]
    with tarfile.open(path, "w") as tar:
        for name, data in change(members):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    seal(folder, field, shard)


def seal(folder: Path, field: str, shard: str) -> None:
    """Update the checksums in state and JSON of a shard."""
    path = folder / f"{field}.{shard}.tar"
    found = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    edit(state_path(folder, field, shard), lambda state: state.update(found))

    def describe(info: dict) -> None:
        next(s for s in info["shards"] if s["name"] == path.name).update(found)
        digests = "".join(s["sha256"] for s in info["shards"])
        info["content_sha256"] = hashlib.sha256(digests.encode()).hexdigest()

    edit(info_path(folder, field), describe)


def change_array(
    folder: Path,
    field: str,
    shard: str,
    position: int,
    change: Callable[[np.ndarray], np.ndarray],
) -> str:
    """Change the array of one cut and update the checksums; return the cut's id."""
    names = []

    def replace(members: Members) -> Members:
        name, data = members[2 * position]
        names.append(name)
        buffer = io.BytesIO()
        np.save(buffer, change(np.load(io.BytesIO(data))))
        members[2 * position] = (name, buffer.getvalue())
        manifest = json.loads(members[2 * position + 1][1])
        manifest["array"]["shape"] = list(np.load(io.BytesIO(buffer.getvalue())).shape)
        members[2 * position + 1] = (
            members[2 * position + 1][0],
            json.dumps(manifest).encode(),
        )
        return members

    change_members(folder, field, shard, replace)
    return names[0][: -len(".npy")]
