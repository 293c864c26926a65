"""Files of a field: shards in the Shar folder, JSON files in a folder next to it.

lhotse takes every file of a Shar folder, hidden ones too, for a shard.  The Shar folder
``train`` therefore holds only the arrays of finished fields:

    train/<field>.000000.tar    arrays in the order of the cuts, as lhotse writes them

All other files are in ``train.fields/<field>/``:

    <field>.000000.tar    staged arrays, moved to ``train`` when all shards are complete
    <field>.000000.json   :class:`ShardState`, with the keys of the cuts; written after
                          the arrays, so that a shard with this file is complete
    <field>.json          :class:`FieldInfo`, written when all shards are complete
    <field>.codec.npz     state of the codec, if it was trained

Folders are local paths or URLs, see :func:`icefall_kd.core.files.as_path`.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, TypeVar

from icefall_kd.core.files import Pathlike, as_path, move_file, read_json, write_json
from icefall_kd.data.shar import fields_dir

_CUTS = re.compile(r"cuts\.(\d+)\.jsonl(\.gz)?")
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RESERVED = ("cuts", "recording", "features")
_EXTRACT = "python -m icefall_kd.bin.extract"


@dataclass(frozen=True)
class ShardState:
    """A complete shard of a field.

    Attributes:
      tar: name of the file with the arrays.
      sha256, bytes: checksum and size of this file.
      num_cuts, num_frames: numbers of cuts and frames in the shard.
      sum, sum_squares: sums over the decompressed frames, D values each.
      cuts_sha256: checksum of the manifest of cuts; if it is unchanged, the cuts join.
      keys: key of each cut, see :mod:`icefall_kd.fields.join`.
      fingerprint: fingerprint of the teacher's output and the codec.
      codec: codec of the arrays, for example "pq16".
    """

    tar: str
    sha256: str
    bytes: int
    num_cuts: int
    num_frames: int
    sum: list[float]
    sum_squares: list[float]
    cuts_sha256: str
    keys: list[list]
    fingerprint: dict[str, Any]
    codec: str


@dataclass(frozen=True)
class FieldInfo:
    """Description of a finished field.

    Attributes:
      name: name of the field, which is also the attribute of a cut: ``cut.<name>``.
      kind: kind of output, see :class:`icefall_kd.teachers.Output`.
      dim: number of values in a decompressed frame.
      frame_shift: time between two frames in seconds.
      codec: codec of the arrays, for example "pq16".
      fingerprint: fingerprint of the teacher's output and the codec.
      mean, std: statistics of each dimension over all frames of the set.
      num_cuts, num_frames: numbers of cuts and frames in the set.
      content_sha256: checksum over the checksums of all shards.
      shards: {name, sha256, num_cuts, bytes, cuts_sha256} of each shard.
      codec_sha256: checksum of the codec's state; None for a codec without training.
    """

    name: str
    kind: str
    dim: int
    frame_shift: float
    codec: str
    fingerprint: dict[str, Any]
    mean: list[float]
    std: list[float]
    num_cuts: int
    num_frames: int
    content_sha256: str
    shards: list[dict[str, Any]]
    codec_sha256: Optional[str] = None


def check_field_name(field: str) -> None:
    """Check that a field may have this name.

    Raises:
      ValueError: if the name is not an identifier, or is reserved by Shar.
    """
    if not _FIELD_NAME.fullmatch(field) or field in RESERVED:
        raise ValueError(
            f"'{field}' cannot name a field. Use letters, digits and '_'. "
            f"{', '.join(RESERVED)} are reserved"
        )


def list_shar(shar_dir: Pathlike) -> list[Path]:
    """Return the files of a Shar folder, sorted.

    Raises:
      FileNotFoundError: if the folder does not exist.
    """
    folder = as_path(shar_dir)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{shar_dir}: no such Shar folder{_name_sets(folder.parent)}"
        )
    return sorted(folder.iterdir())  # glob("*") of some stores omits hidden files


def shard_ids(shar_dir: Pathlike) -> list[str]:
    """Return the sorted numbers of the shards of cuts, ["000000", ...].

    Raises:
      FileNotFoundError: if the folder does not exist or has no cuts.
    """
    matches = [_CUTS.fullmatch(path.name) for path in list_shar(shar_dir)]
    ids = sorted(match.group(1) for match in matches if match is not None)
    if not ids:
        raise FileNotFoundError(
            f"{shar_dir} has no cuts.*.jsonl.gz: it is not a Shar folder. Write one "
            "with 'python -m icefall_kd.bin.make_shar'" + _name_sets(as_path(shar_dir))
        )
    return ids


def _name_sets(folder: Path) -> str:
    """Return the end of a message: the sets that bin.make_shar wrote to a folder."""
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    sets = [name for name in names if f"{name}.gate.json" in names]
    return f"; sets in {folder}: {', '.join(sets)}" if sets else ""


def list_fields(shar_dir: Pathlike) -> list[str]:
    """Return the names of the finished fields of a Shar folder, sorted."""
    names = {p.name.split(".")[0] for p in list_shar(shar_dir) if p.suffix == ".tar"}
    names -= set(RESERVED)
    return sorted(name for name in names if info_path(shar_dir, name).is_file())


def cuts_path(shar_dir: Pathlike, shard: str) -> Path:
    """Return the manifest of the cuts of a shard, compressed or not."""
    path = as_path(shar_dir) / f"cuts.{shard}.jsonl.gz"
    return path if path.exists() else path.with_suffix("")


def recording_path(shar_dir: Pathlike, shard: str) -> Path:
    """Return the tar of the audio of a shard."""
    return as_path(shar_dir) / f"recording.{shard}.tar"


def tar_path(shar_dir: Pathlike, field: str, shard: str) -> Path:
    """Return the tar of a shard's arrays in a finished field."""
    return as_path(shar_dir) / f"{field}.{shard}.tar"


def field_dir(shar_dir: Pathlike, field: str) -> Path:
    """Return the folder of a field's files, except its published tars."""
    return fields_dir(shar_dir) / field


def staged_path(shar_dir: Pathlike, field: str, shard: str) -> Path:
    """Return the tar of a shard's arrays in an unfinished field."""
    return field_dir(shar_dir, field) / f"{field}.{shard}.tar"


def state_path(shar_dir: Pathlike, field: str, shard: str) -> Path:
    """Return the path of a shard's :class:`ShardState`."""
    return field_dir(shar_dir, field) / f"{field}.{shard}.json"


def info_path(shar_dir: Pathlike, field: str) -> Path:
    """Return the path of a field's :class:`FieldInfo`."""
    return field_dir(shar_dir, field) / f"{field}.json"


def find_tar(shar_dir: Pathlike, field: str, shard: str) -> Path:
    """Return the tar of a shard's arrays; the staged one, if both exist."""
    staged = staged_path(shar_dir, field, shard)
    return staged if staged.is_file() else tar_path(shar_dir, field, shard)


def publish_tars(shar_dir: Pathlike, field: str, shards: Sequence[str]) -> None:
    """Move the staged arrays of a field into the Shar folder.

    Call it when all shards are complete: lhotse cannot open a Shar folder in which a
    field lacks a shard.
    """
    for shard in shards:
        staged = staged_path(shar_dir, field, shard)
        if staged.is_file():
            move_file(staged, tar_path(shar_dir, field, shard))


def load_field_info(shar_dir: Pathlike, field: str) -> FieldInfo:
    """Read the description of a finished field.

    Raises:
      FileNotFoundError: if the field does not exist or is unfinished; the message
        lists the finished fields.
      ValueError: if the file has another form.
    """
    path = info_path(shar_dir, field)
    if not path.is_file():
        raise FileNotFoundError(
            f"{shar_dir}: field '{field}' {_describe_unfinished(shar_dir, field)}. "
            f"Finished fields: {', '.join(list_fields(shar_dir)) or 'none'}"
        )
    return _load(FieldInfo, path)


def _describe_unfinished(shar_dir: Pathlike, field: str) -> str:
    """Return the end of a message: state and remedy of a field without description."""
    folder = field_dir(shar_dir, field)
    names = {p.name for p in list_shar(shar_dir)}
    extract = f"Run '{_EXTRACT} --shar-dir {shar_dir} --field {field} ...'"
    if f"{field}.json" in names:
        ours = re.compile(rf"{field}\.(\d+\.)?(json|codec\.npz)")
        patterns = {f"{shar_dir}/{field}.*{n[-4:]}" for n in names if ours.fullmatch(n)}
        return (
            f"has the layout of an earlier version. Run 'mkdir -p {folder} && mv "
            f"{' '.join(sorted(patterns))} {folder}'"
        )
    tars = {n for n in names if re.fullmatch(rf"{field}\.\d+\.tar", n)}
    if not folder.is_dir() and tars:
        return f"has no description. Copy {folder} with the Shar folder"
    tars |= {path.name for path in folder.glob(f"{field}.*.tar")}
    state = f"is unfinished ({len(tars)} shards)" if tars else "does not exist"
    return f"{state}. {extract}"


def load_shard_state(path: Pathlike) -> ShardState:
    """Read the state of a shard.

    Raises:
      ValueError: if the file has another form.
    """
    return _load(ShardState, path)


_T = TypeVar("_T", FieldInfo, ShardState)


def _load(cls: type[_T], path: Pathlike) -> _T:
    values = read_json(path)
    fields = dataclasses.fields(cls)
    known = {f.name for f in fields}
    needed = {f.name for f in fields if f.default is dataclasses.MISSING}
    if not isinstance(values, dict) or not needed <= set(values) <= known:
        raise ValueError(
            f"{path} is not a {cls.__name__} of this version. Delete it and run "
            f"'{_EXTRACT}' again"
        )
    return cls(**values)


def save(obj: Any, path: Pathlike) -> None:
    """Write a :class:`FieldInfo` or a :class:`ShardState` atomically."""
    write_json(path, dataclasses.asdict(obj))


def fingerprint_differences(
    wanted: Mapping[str, Any], found: Mapping[str, Any], only_wanted: bool = False
) -> list[str]:
    """Return one line for each key whose value differs.

    Args:
      only_wanted: compare only the keys of ``wanted``.
    """
    names = set(wanted) if only_wanted else set(wanted) | set(found)
    return [
        f"{name} is {found.get(name)!r}, wanted {wanted.get(name)!r}"
        for name in sorted(names)
        if wanted.get(name) != found.get(name)
    ]
