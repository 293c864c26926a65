"""Which files in and beside a Shar folder belong to which field, whole or not."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from icefall_kd.cache.field import (
    RESERVED,
    check_field_name,
    fields_dir,
    list_shar,
    load_field_info,
)
from icefall_kd.io import Pathlike

# See icefall_kd.io.write_aside: machine, where it is told; process; file.
_PARTIAL = re.compile(r"\.(?:([A-Za-z0-9-]+)\.)?(\d+)\.partial\.(.+)")
_SHARD = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\.(\d+)\.(tar|json)")
_WHOLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\.(json|codec\.npz)")


@dataclass
class FieldFiles:
    """The files of one field, see :mod:`icefall_kd.cache.field`.

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
