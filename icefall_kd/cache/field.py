"""What a field is, as JSON beside its shards.

A folder in Shar format holds ``cuts.000000.jsonl.gz``, ``recording.000000.tar`` and
so on.  A field adds, and nothing else changes:

    <field>.000000.tar    the arrays, in the order of the cuts (lhotse's form)
    <field>.000000.json   :class:`ShardState`: written last, so that a shard is whole
                          when this file exists; holds the keys of the join
    <field>.json          :class:`FieldInfo`: written when all shards are whole
    <field>.codec.npz     state of the codec, where it has one

The folder is a local one or a URL, see :func:`icefall_kd.io.as_path`.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

from icefall_kd.io import Pathlike, as_path, read_json, write_json

_CUTS = re.compile(r"cuts\.(\d+)\.jsonl(\.gz)?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
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
    sum: List[float]
    sum_squares: List[float]
    cuts_sha256: str
    keys: List[list]
    fingerprint: Dict[str, Any]
    codec: str


@dataclass(frozen=True)
class FieldInfo:
    """A finished field: what it holds, who said it, and its statistics.

    Attributes:
      name:        the attribute of a cut, ``cut.<name>``.
      kind:        what a frame is, see :class:`icefall_kd.teachers.Output`.
      dim:         values of a decoded frame.
      frame_shift: seconds between two frames.
      codec:       as :func:`icefall_kd.cache.codecs.find_codec` reads it.
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
    fingerprint: Dict[str, Any]
    mean: List[float]
    std: List[float]
    num_cuts: int
    num_frames: int
    content_sha256: str
    shards: List[Dict[str, Any]]
    codec_sha256: Optional[str] = None


def check_field_name(field: str) -> None:
    """Refuse a name that cannot be an attribute of a cut.

    Raises:
      ValueError: if the name is not an identifier, or is one of Shar's own.
    """
    if not _NAME.fullmatch(field) or field in RESERVED:
        raise ValueError(
            f"'{field}' cannot name a field: use letters, digits and '_', and none "
            f"of {RESERVED}"
        )


def shard_ids(shar_dir: Pathlike) -> List[str]:
    """Return the sorted numbers of the shards of cuts, as written: ["000000", ...].

    Raises:
      FileNotFoundError: if there are none.
    """
    ids = sorted(
        m.group(1)
        for m in (_CUTS.fullmatch(p.name) for p in _listed(shar_dir))
        if m is not None
    )
    if not ids:
        raise FileNotFoundError(
            f"{shar_dir} holds no cuts.*.jsonl.gz: it is not a Shar folder; make one "
            "with 'python -m icefall_kd.bin.make_shar'"
        )
    return ids


def cuts_path(shar_dir: Pathlike, shard: str) -> Path:
    """Return the file of the cuts of one shard, compressed or not."""
    path = as_path(shar_dir) / f"cuts.{shard}.jsonl.gz"
    return path if path.exists() else path.with_suffix("")


def recording_path(shar_dir: Pathlike, shard: str) -> Path:
    """Return the path of one shard's audio."""
    return as_path(shar_dir) / f"recording.{shard}.tar"


def list_fields(shar_dir: Pathlike) -> List[str]:
    """Return the names of the finished fields of a Shar folder, sorted."""
    files = {p.name for p in _listed(shar_dir)}
    with_arrays = {name.split(".")[0] for name in files if name.endswith(".tar")}
    return sorted(n for n in with_arrays if f"{n}.json" in files)


def state_path(shar_dir: Pathlike, field: str, shard: str) -> Path:
    """Return the path of one shard's :class:`ShardState`."""
    return as_path(shar_dir) / f"{field}.{shard}.json"


def tar_path(shar_dir: Pathlike, field: str, shard: str) -> Path:
    """Return the path of one shard's arrays."""
    return as_path(shar_dir) / f"{field}.{shard}.tar"


def info_path(shar_dir: Pathlike, field: str) -> Path:
    """Return the path of the field's :class:`FieldInfo`."""
    return as_path(shar_dir) / f"{field}.json"


def load_field_info(shar_dir: Pathlike, field: str) -> FieldInfo:
    """Read the JSON of a finished field.

    Raises:
      FileNotFoundError: if the folder holds no such field, or only a part of it; the
        message lists those that it holds.
      ValueError: if the file is of another form.
    """
    path = info_path(shar_dir, field)
    if not path.is_file():
        parts = len(list(_listed(shar_dir, f"{field}.*.tar")))
        state = f"is unfinished ({parts} shards)" if parts else "does not exist"
        raise FileNotFoundError(
            f"{shar_dir}: field '{field}' {state}; finished fields: "
            f"{list_fields(shar_dir) or 'none'}. Remedy: 'python -m "
            f"icefall_kd.bin.extract --shar-dir {shar_dir} --field {field} ...'"
        )
    return _from_json(FieldInfo, path)


def load_shard_state(path: Pathlike) -> ShardState:
    """Read the JSON of one shard.

    Raises:
      ValueError: if the file is of another form.
    """
    return _from_json(ShardState, path)


def save(obj: Any, path: Pathlike) -> None:
    """Write a :class:`FieldInfo` or a :class:`ShardState`, whole or not at all."""
    write_json(path, dataclasses.asdict(obj))


def fingerprint_differences(
    wanted: Dict[str, Any], found: Dict[str, Any], only_wanted: bool = False
) -> List[str]:
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


def _from_json(cls: type, path: Pathlike) -> Any:
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


def _listed(shar_dir: Pathlike, pattern: str = "*") -> List[Path]:
    folder = as_path(shar_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"{shar_dir}: no such Shar folder")
    return sorted(folder.glob(pattern))
