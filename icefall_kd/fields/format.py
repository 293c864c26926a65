"""What a field is on disk: its shards, and JSON files in a folder of their own.

A folder in Shar format, here ``train``, holds ``cuts.000000.jsonl.gz``,
``recording.000000.tar`` and so on.  lhotse takes every file there for a shard, hidden
ones too, so a finished field adds its tars and nothing else:

    train/<field>.000000.tar    the arrays, in the order of the cuts (lhotse's form)

The rest is in the folder ``train.fields/<field>/``:

    <field>.000000.tar    the arrays, until all shards of the field are whole
    <field>.000000.json   :class:`ShardState`: written last, so that a shard is whole
                          when this file exists; holds the keys of the join
    <field>.json          :class:`FieldInfo`: written when all shards are whole
    <field>.codec.npz     state of the codec, where it has one

The folder is a local one or a URL, see :func:`icefall_kd.core.files.as_path`.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from icefall_kd.core.files import (
    Pathlike,
    as_path,
    move_file,
    read_json,
    write_json,
)
from icefall_kd.data.shar import fields_dir

_CUTS = re.compile(r"cuts\.(\d+)\.jsonl(\.gz)?")
FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RESERVED = ("cuts", "recording", "features")


@dataclass(frozen=True)
class ShardState:
    """One finished shard of a field.

    Attributes:
      tar:         file name of the arrays.
      sha256:      of that file.
      bytes:       of that file.
      num_cuts, num_frames: in the shard.
      sum, sum_squares: D float, over the stored frames; they make the statistics.
      cuts_sha256: of the cuts' file that the shard was made from: while it is the
                   same, the join needs no further look.
      keys:        for each cut [cut id, recording id, start, duration, speed].
      fingerprint: of the teacher's output, with the codec's.
      codec:       of the arrays.
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
    """A finished field: what it holds, who said it, and its statistics.

    Attributes:
      name:        the attribute of a cut, ``cut.<name>``.
      kind:        what a frame is, see :class:`icefall_kd.teachers.Output`.
      dim:         values of a decoded frame.
      frame_shift: seconds between two frames.
      codec:       as :func:`icefall_kd.fields.codecs.find_codec` reads it.
      fingerprint: of the teacher's output, with the codec's.
      mean, std:   of each dimension over all frames of the set; of an embedding.
      num_cuts, num_frames: in the set.
      content_sha256: over the checksums of all shards.
      shards:      one {name, sha256, num_cuts, bytes, cuts_sha256} a shard.
      codec_sha256: of the codec's state; None for a codec without.
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
    """Refuse a name that cannot be an attribute of a cut.

    Raises:
      ValueError: if the name is not an identifier, or is one of Shar's own.
    """
    if not FIELD_NAME.fullmatch(field) or field in RESERVED:
        raise ValueError(
            f"'{field}' cannot name a field: use letters, digits and '_', and none "
            f"of {RESERVED}"
        )


def shard_ids(shar_dir: Pathlike) -> list[str]:
    """Return the sorted numbers of the shards of cuts, as written: ["000000", ...].

    Raises:
      FileNotFoundError: if there are none.
    """
    ids = sorted(
        m.group(1)
        for m in (_CUTS.fullmatch(p.name) for p in list_shar(shar_dir))
        if m is not None
    )
    if not ids:
        raise FileNotFoundError(
            f"{shar_dir} holds no cuts.*.jsonl.gz: it is not a Shar folder; make one "
            "with 'python -m icefall_kd.bin.make_shar'" + _name_sets(as_path(shar_dir))
        )
    return ids


def cuts_path(shar_dir: Pathlike, shard: str) -> Path:
    """Return the file of the cuts of one shard, compressed or not."""
    path = as_path(shar_dir) / f"cuts.{shard}.jsonl.gz"
    return path if path.exists() else path.with_suffix("")


def recording_path(shar_dir: Pathlike, shard: str) -> Path:
    """Return the path of one shard's audio."""
    return as_path(shar_dir) / f"recording.{shard}.tar"


def list_fields(shar_dir: Pathlike) -> list[str]:
    """Return the names of the finished fields of a Shar folder, sorted."""
    names = [p.name for p in list_shar(shar_dir)]
    with_arrays = {name.split(".")[0] for name in names if name.endswith(".tar")}
    with_arrays -= set(RESERVED)
    return sorted(n for n in with_arrays if info_path(shar_dir, n).is_file())


def field_dir(shar_dir: Pathlike, field: str) -> Path:
    """Return the folder of a field's files, all but its finished tars."""
    return fields_dir(shar_dir) / field


def state_path(shar_dir: Pathlike, field: str, shard: str) -> Path:
    """Return the path of one shard's :class:`ShardState`."""
    return field_dir(shar_dir, field) / f"{field}.{shard}.json"


def tar_path(shar_dir: Pathlike, field: str, shard: str) -> Path:
    """Return the path of one shard's arrays in a finished field."""
    return as_path(shar_dir) / f"{field}.{shard}.tar"


def staged_path(shar_dir: Pathlike, field: str, shard: str) -> Path:
    """Return the path of one shard's arrays until the field is finished."""
    return field_dir(shar_dir, field) / f"{field}.{shard}.tar"


def find_tar(shar_dir: Pathlike, field: str, shard: str) -> Path:
    """Return the path of one shard's arrays, the newer ones where there are two."""
    staged = staged_path(shar_dir, field, shard)
    return staged if staged.is_file() else tar_path(shar_dir, field, shard)


def publish(shar_dir: Pathlike, field: str, shards: Sequence[str]) -> None:
    """Move the arrays of a field, all of them whole, into the Shar folder.

    Until then lhotse would miss shards there, and open the folder no more.
    """
    for shard in shards:
        staged = staged_path(shar_dir, field, shard)
        if staged.is_file():
            move_file(staged, tar_path(shar_dir, field, shard))


def info_path(shar_dir: Pathlike, field: str) -> Path:
    """Return the path of the field's :class:`FieldInfo`."""
    return field_dir(shar_dir, field) / f"{field}.json"


def load_field_info(shar_dir: Pathlike, field: str) -> FieldInfo:
    """Read the JSON of a finished field.

    Raises:
      FileNotFoundError: if the folder holds no such field, or only a part of it; the
        message lists those that it holds.
      ValueError: if the file is of another form.
    """
    path = info_path(shar_dir, field)
    if not path.is_file():
        there = {p.name for p in list_shar(shar_dir)}  # may move it to its place
    if not path.is_file():
        state = _state_of_unfinished(shar_dir, field, there)
        raise FileNotFoundError(
            f"{shar_dir}: field '{field}' {state}; finished fields: "
            f"{list_fields(shar_dir) or 'none'}. Remedy: 'python -m "
            f"icefall_kd.bin.extract --shar-dir {shar_dir} --field {field} ...'"
        )
    return from_json(FieldInfo, path)


def load_shard_state(path: Pathlike) -> ShardState:
    """Read the JSON of one shard.

    Raises:
      ValueError: if the file is of another form.
    """
    return from_json(ShardState, path)


def save(obj: Any, path: Pathlike) -> None:
    """Write a :class:`FieldInfo` or a :class:`ShardState`, whole or not at all."""
    write_json(path, dataclasses.asdict(obj))


def fingerprint_differences(
    wanted: dict[str, Any], found: dict[str, Any], only_wanted: bool = False
) -> list[str]:
    """Return one text for each key whose value differs.

    Args:
      only_wanted: look only at the keys of ``wanted``.
    """
    names = set(wanted) if only_wanted else set(wanted) | set(found)
    return [
        f"{name} is {found.get(name)!r}, wanted {wanted.get(name)!r}"
        for name in sorted(names)
        if wanted.get(name) != found.get(name)
    ]


def from_json(cls: type, path: Pathlike) -> Any:
    """Read the JSON of a :class:`FieldInfo` or a :class:`ShardState`.

    Raises:
      ValueError: if the file is of another form.
    """
    values = read_json(path)
    fields = dataclasses.fields(cls)
    known = {f.name for f in fields}
    needed = {f.name for f in fields if f.default is dataclasses.MISSING}
    if not isinstance(values, dict) or not needed <= set(values) <= known:
        raise ValueError(
            f"{path} is not a {cls.__name__} of this version; delete it and run "
            "'python -m icefall_kd.bin.extract' again"
        )
    return cls(**values)


def _state_of_unfinished(shar_dir: Pathlike, field: str, there: set[str]) -> str:
    """Return what is wrong with a field that has no description.

    Args:
      there: names of the files in the Shar folder.
    """
    folder = field_dir(shar_dir, field)
    if f"{field}.json" in there:
        return f"has its description in the Shar folder itself; move it to {folder}"
    tars = {n for n in there if re.fullmatch(rf"{field}\.\d+\.tar", n)}
    if not folder.is_dir():
        if tars:
            return f"has no description; copy {folder} from where it was made"
        return "does not exist"
    tars |= {path.name for path in folder.glob(f"{field}.*.tar")}
    return f"is unfinished ({len(tars)} shards)" if tars else "does not exist"


def _name_sets(folder: Path) -> str:
    """Return the sets that bin.make_shar wrote into a folder, for a message."""
    there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    sets = [name for name in there if f"{name}.gate.json" in there]
    return f"; sets in {folder}: {', '.join(sets)}" if sets else ""


def list_shar(shar_dir: Pathlike) -> list[Path]:
    """Return the files of a Shar folder, sorted.

    The files that earlier versions wrote between the shards are moved out first.

    Raises:
      FileNotFoundError: if there is no such folder.
    """
    from icefall_kd.fields.old_layout import move_old_files

    folder = as_path(shar_dir)
    if not folder.is_dir():
        near = _name_sets(folder.parent)
        raise FileNotFoundError(f"{shar_dir}: no such Shar folder{near}")
    paths = sorted(folder.iterdir())  # hidden ones, which some stores leave out of '*'
    return sorted(folder.iterdir()) if move_old_files(shar_dir, paths) else paths
