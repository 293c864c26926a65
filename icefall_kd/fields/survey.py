"""Which files in and beside a Shar folder belong to which field, whole or not.

What a Shar folder holds of each field, told from names, sizes and descriptions.

Nothing here reads the arrays; :mod:`icefall_kd.fields.audit` proves them.
"""

import dataclasses
import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from icefall_kd.core.files import Pathlike, sha256_file
from icefall_kd.data.shar import fields_dir
from icefall_kd.fields.codecs import find_codec
from icefall_kd.fields.format import (
    RESERVED,
    FieldInfo,
    ShardState,
    check_field_name,
    cuts_path,
    list_shar,
    load_field_info,
    load_shard_state,
    shard_ids,
)
from icefall_kd.fields.join import compare_keys, read_keys

# See icefall_kd.core.files.write_atomically: machine, where it is told; process; file.
_PARTIAL = re.compile(r"\.(?:([A-Za-z0-9-]+)\.)?(\d+)\.partial\.(.+)")
_SHARD = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\.(\d+)\.(tar|json)")
_WHOLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\.(json|codec\.npz)")


@dataclass
class FieldFiles:
    """The files of one field, see :mod:`icefall_kd.fields.format`.

    Attributes:
      tars, states: shard -> file; of two tars the newer, not in the Shar folder yet.
      partial:      what a process writes aside, or left behind when it was killed;
                    tars that newer ones will replace.
    """

    name: str
    info: Optional[Path] = None
    codec: Optional[Path] = None
    tars: dict[str, Path] = field(default_factory=dict)
    states: dict[str, Path] = field(default_factory=dict)
    partial: list[Path] = field(default_factory=list)

    @property
    def described(self) -> bool:
        """Whether this package wrote it; else it is another tar series of lhotse's."""
        return bool(self.info or self.states or self.partial or self.codec)

    @property
    def holds_more_than_info(self) -> bool:
        """Whether it is more than a JSON file, which may be of something else."""
        return bool(self.tars or self.states or self.codec or self.partial)

    def paths(self) -> list[Path]:
        """Return all files in the order in which they may be deleted.

        The description goes first, then what declares each shard whole: stopped at
        any place, what is left is an unfinished field.
        """
        single = [self.info] if self.info else []
        last = [self.codec] if self.codec else []
        shards = [d[s] for d in (self.states, self.tars) for s in sorted(d)]
        return single + shards + sorted(self.partial) + last


def find_fields(shar_dir: Pathlike) -> dict[str, FieldFiles]:
    """Return the files of all fields by field name, sorted.

    A series of tars that another program wrote is among them, see
    :attr:`FieldFiles.described`; a JSON file alone is one if it describes a field.

    Raises:
      FileNotFoundError: if there is no such folder.
    """
    found: dict[str, FieldFiles] = {}
    for path in list_shar(shar_dir):
        place = _place(path.name)
        if place is not None and place[2] == "tar":
            _file(path, found)
    beside = fields_dir(shar_dir)
    for folder in beside.iterdir() if beside.is_dir() else ():
        for path in folder.iterdir() if folder.is_dir() else ():
            _file(path, found)
    return {
        name: files
        for name, files in sorted(found.items())
        if files.holds_more_than_info or _describes_field(shar_dir, name)
    }


def field_files(shar_dir: Pathlike, name: str) -> FieldFiles:
    """Return the files of one field.

    Raises:
      FileNotFoundError: if the folder holds none; the message lists those it holds.
      ValueError: if the name is one of Shar's own.
    """
    check_field_name(name)
    fields = find_fields(shar_dir)
    if name not in fields:
        raise FileNotFoundError(
            f"{shar_dir}: field '{name}' does not exist; there are: "
            f"{', '.join(fields) or 'none'}"
        )
    return fields[name]


def _file(path: Path, found: dict[str, FieldFiles]) -> None:
    """Put one path where it belongs, if it is of a field."""
    partial = _PARTIAL.fullmatch(path.name)
    place = _place(partial.group(3) if partial else path.name)
    if place is None:
        return
    name, shard, kind = place
    files = found.setdefault(name, FieldFiles(name))
    if partial:
        files.partial.append(path)
    elif kind == "tar":
        if shard in files.tars:
            files.partial.append(files.tars[shard])
        files.tars[shard] = path
    elif shard is not None:
        files.states[shard] = path
    elif kind == "json":
        files.info = path
    else:
        files.codec = path


def _describes_field(shar_dir: Pathlike, name: str) -> bool:
    try:
        load_field_info(shar_dir, name)
    except ValueError:
        return False
    return True


def _place(file_name: str) -> Optional[tuple[str, Optional[str], str]]:
    """Return (field, shard, ending) of a file's name; None if it is of no field."""
    match = _SHARD.fullmatch(file_name)
    if match is not None:
        name, shard, kind = match.groups()
    else:
        match = _WHOLE.fullmatch(file_name)
        if match is None:
            return None
        name, shard, kind = match.group(1), None, match.group(2)
    return None if name in RESERVED else (name, shard, kind)


Problems = dict[str, list[str]]  # kind of problem -> one text a case


@dataclass(frozen=True)
class Summary:
    """What a folder holds of one field.

    Attributes:
      state: "whole" (all files are there in their sizes), "unfinished", "damaged",
             "orphan" (there are shards without cuts) or "foreign" (tars that this
             package did not write).
      note:  what is wrong, empty when nothing is.
      kind, dim, frame_shift, codec: as in :class:`~icefall_kd.fields.format.FieldInfo`;
             None where the files do not tell.
      bytes: of all tars that are there.
      num_cuts, num_frames: of the whole shards.
      shards_done, shards: whole ones, of as many as the cuts have.
      fingerprint: of the teacher's output; empty where the files do not tell.
    """

    name: str
    state: str
    note: str
    kind: Optional[str]
    dim: Optional[int]
    frame_shift: Optional[float]
    codec: Optional[str]
    bytes: int
    num_cuts: int
    num_frames: int
    shards_done: int
    shards: int
    fingerprint: dict[str, Any]

    @property
    def bytes_per_frame(self) -> Optional[float]:
        """Of the tars, with what they need beside the frames; None of no frames."""
        return self.bytes / self.num_frames if self.num_frames else None

    @property
    def hours(self) -> Optional[float]:
        """Of audio that the frames stand for; None where their shift is unknown."""
        shift = self.frame_shift
        return None if shift is None else self.num_frames * shift / 3600

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        derived = {"bytes_per_frame": self.bytes_per_frame, "hours": self.hours}
        return {**dataclasses.asdict(self), **derived}


def survey(shar_dir: Pathlike) -> list[Summary]:
    """Return a summary of every field, finished or not, sorted by name.

    Raises:
      FileNotFoundError: if the folder is none, or no Shar folder.
    """
    ids = shard_ids(shar_dir)
    return [summarise(shar_dir, f, ids) for f in find_fields(shar_dir).values()]


def summarise(shar_dir: Pathlike, files: FieldFiles, ids: Sequence[str]) -> Summary:
    """Return the summary of one field.

    Args:
      ids: of the shards of cuts, see :func:`icefall_kd.fields.format.shard_ids`.
    """
    if files.info is not None:
        try:
            info = load_field_info(shar_dir, files.name)
        except ValueError as e:
            return _unfinished(files, ids, "damaged", [str(e)])
        return _finished(files, ids, info)
    if not files.described:
        note = "no description: not written by icefall_kd.bin.extract"
        return _unfinished(files, ids, "foreign", [note])
    return _unfinished(files, ids, "unfinished", [])


def quick_look(files: FieldFiles, info: FieldInfo, ids: Sequence[str]) -> Problems:
    """Return which shards are missing, of another size than described, or orphans."""
    entries = {s["name"]: s for s in info.shards}
    problems: Problems = {}
    for shard in ids:
        name = f"{files.name}.{shard}.tar"
        tar, entry = files.tars.get(shard), entries.pop(name, None)
        if tar is None or entry is None:
            problems.setdefault("missing shards", []).append(name)
        elif tar.stat().st_size != entry["bytes"]:
            problems.setdefault("shards of another size", []).append(name)
    orphans = set(entries) | {files.tars[s].name for s in set(files.tars) - set(ids)}
    if orphans:
        problems["shards without cuts"] = sorted(orphans)
    return problems


def completeness(
    shar_dir: Pathlike, files: FieldFiles, ids: Sequence[str]
) -> tuple[int, int, Problems]:
    """Compare a field with the cuts as they are now.

    A shard whose file of cuts is the one that it was made from joins without a look
    at each cut.

    Returns:
      cuts that have their target, cuts in all, and what keeps the others from it.
    """
    joined = total = 0
    problems: Problems = {}
    for shard in ids:
        cuts = cuts_path(shar_dir, shard)
        state = read_state(files, shard)
        if state is not None and state.cuts_sha256 == sha256_file(cuts):
            joined, total = joined + state.num_cuts, total + state.num_cuts
            continue
        keys = read_keys(cuts)
        found = compare_keys(keys, state.keys if state is not None else [])
        astray = {k: v for k, v in found.items() if k != "out of order"}
        joined += len(keys) - sum(map(len, astray.values()))
        total += len(keys)
        for kind, cases in found.items():
            problems.setdefault(kind, []).extend(cases)
    return joined, total, problems


def join_problems(shar_dir: Pathlike, field: str, shard: str) -> Problems:
    """Return what keeps one shard of a field from its cuts; empty when it joins."""
    files = field_files(shar_dir, field)
    return completeness(shar_dir, files, [shard])[2]


def read_state(files: FieldFiles, shard: str) -> Optional[ShardState]:
    """Return what declares a shard whole; None if that or the arrays are missing."""
    if shard not in files.tars or shard not in files.states:
        return None
    try:
        return load_shard_state(files.states[shard])
    except ValueError:
        return None


def _finished(files: FieldFiles, ids: Sequence[str], info: FieldInfo) -> Summary:
    problems = quick_look(files, info, ids)
    lost = {k: v for k, v in problems.items() if k != "shards without cuts"}
    state = "damaged" if lost else "orphan" if problems else "whole"
    return Summary(
        name=files.name,
        state=state,
        note=_note(problems),
        kind=info.kind,
        dim=info.dim,
        frame_shift=info.frame_shift,
        codec=info.codec,
        bytes=_bytes(files),
        num_cuts=info.num_cuts,
        num_frames=info.num_frames,
        shards_done=len(ids) - sum(map(len, lost.values())),
        shards=len(ids),
        fingerprint=info.fingerprint,
    )


def _unfinished(
    files: FieldFiles, ids: Sequence[str], state: str, notes: list[str]
) -> Summary:
    """Return what the shards tell of a field that has no description."""
    states = {s: read_state(files, s) for s in ids}
    done = {s: x for s, x in states.items() if x is not None}
    orphans = sorted(set(files.tars) - set(ids))
    if orphans:
        names = [files.tars[s].name for s in orphans]
        notes = [*notes, _note({"shards without cuts": names})]
        if not set(files.tars) & set(ids):
            state = "orphan"
    if files.partial:
        notes = [*notes, f"{len(files.partial)} files being written or left behind"]
    first = next(iter(done.values()), None)
    tar = next((files.tars[s] for s in sorted(files.tars)), None)
    return Summary(
        name=files.name,
        state=state,
        note="; ".join(notes),
        kind=_kind(first.codec) if first else None,
        dim=len(first.sum) if first else None,
        frame_shift=_frame_shift(tar) if tar is not None else None,
        codec=first.codec if first else None,
        bytes=_bytes(files),
        num_cuts=sum(s.num_cuts for s in done.values()),
        num_frames=sum(s.num_frames for s in done.values()),
        shards_done=len(done),
        shards=len(ids),
        fingerprint=first.fingerprint if first else {},
    )


def _note(problems: Problems) -> str:
    return "; ".join(
        f"{len(cases)} {kind}, for example {', '.join(cases[:5])}"
        for kind, cases in sorted(problems.items())
    )


def _bytes(files: FieldFiles) -> int:
    return sum(path.stat().st_size for path in files.tars.values())


def _kind(codec: str) -> Optional[str]:
    """Return the kind that a codec holds, or kinds; None of an unknown codec."""
    try:
        return "/".join(find_codec(codec)[0].kinds)
    except ValueError:
        return None


def _frame_shift(tar: Path) -> Optional[float]:
    """Return the frame shift of a tar's first array, None if it cannot be read."""
    try:
        with tar.open("rb") as f, tarfile.open(fileobj=f, mode="r|") as members:
            for member in members:
                if member.name.endswith(".json"):
                    return json.loads(members.extractfile(member).read())["frame_shift"]
    except (tarfile.TarError, OSError, EOFError, ValueError, KeyError):
        pass
    return None
