"""Check which files a field has, and whether each of its shards is complete.

A shard is complete if its state can be read, its tar has the recorded size (and
SHA-256, unless skipped) and its keys join the cuts.
"""

import functools
import logging
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from icefall_kd.core.files import Pathlike, sha256_file
from icefall_kd.data.shar import fields_dir
from icefall_kd.fields.format import (
    RESERVED,
    FieldInfo,
    ShardState,
    check_field_name,
    cuts_path,
    find_tar,
    list_shar,
    load_field_info,
    load_shard_state,
    state_path,
)
from icefall_kd.fields.join import (
    Problems,
    add_problems,
    compare_keys,
    describe_problems,
    read_keys,
)

# A temporary file, see icefall_kd.core.files: host (optional), process, final name.
_PARTIAL = re.compile(r"\.(?:[A-Za-z0-9-]+\.)?\d+\.partial\.(.+)")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\.(?:(\d+)\.(tar|json)|(json|codec\.npz))")


def check_tar(tar: Path, num_bytes: int, sha256: Optional[str] = None) -> str:
    """Return the fault of a tar, for example "missing"; "" if it is complete.

    Args:
      num_bytes: recorded size in bytes.
      sha256: recorded checksum; None checks only the size.
    """
    try:
        size = tar.stat().st_size
        if size != num_bytes:
            return f"damaged, {size} bytes instead of {num_bytes}"
        if sha256 is not None and sha256_file(tar) != sha256:
            return "damaged, another SHA-256 than the recorded one"
    except FileNotFoundError:
        return "missing"
    return ""


def check_join(cuts_file: Path, state: ShardState) -> Problems:
    """Return the problems that prevent a shard from joining its cuts.

    The keys are compared only if the manifest of cuts has changed.
    """
    if sha256_file(cuts_file) == state.cuts_sha256:
        return {}
    return compare_keys(read_keys(cuts_file), state.keys)


def load_complete_state(
    shar_dir: Pathlike, field: str, shard: str, *, full: bool = True
) -> Optional[ShardState]:
    """Return the state of a shard if it is complete, None otherwise.

    Logs a warning for a shard that has a state, but is damaged or does not join.

    Args:
      full: check the SHA-256; False checks only the size, which misses flipped bits.
    """
    path = state_path(shar_dir, field, shard)
    if not path.is_file():
        return None
    try:
        state = load_shard_state(path)
    except ValueError as e:
        logging.warning("%s; the shard is written again", e)
        return None
    sha256 = state.sha256 if full else None
    tar = find_tar(shar_dir, field, shard)
    fault = check_tar(tar, state.bytes, sha256)
    if fault == "missing":  # another process may have published it meanwhile
        tar = find_tar(shar_dir, field, shard)
        fault = check_tar(tar, state.bytes, sha256)
    if fault:
        if fault != "missing":
            logging.warning("%s: %s; the shard is written again", tar, fault)
        return None
    problems = check_join(cuts_path(shar_dir, shard), state)
    if problems:
        logging.warning(
            "%s: does not join its cuts; the shard is written again:\n%s",
            tar,
            describe_problems(problems),
        )
        return None
    return state


def find_complete_shards(
    shar_dir: Pathlike,
    field: str,
    shards: Sequence[str],
    *,
    full: bool = True,
    num_threads: int = 1,
) -> Iterator[tuple[str, ShardState]]:
    """Yield (shard, state) of each complete shard.

    Args:
      shards: shards to check.
      full: check the SHA-256; False checks only the size.
      num_threads: number of threads that compute the SHA-256.
    """
    load = functools.partial(load_complete_state, shar_dir, field, full=full)
    with ThreadPoolExecutor(num_threads) as pool:
        for shard, state in zip(shards, pool.map(load, shards)):
            if state is not None:
                yield shard, state


@dataclass
class FieldFiles:
    """Files of one field, see :mod:`icefall_kd.fields.format`.

    Attributes:
      name: name of the field.
      info: description; None for an unfinished field.
      codec: state of the codec; None for a codec without training.
      tars: shard -> tar; the staged one if there is a published one too.
      states: shard -> state.
      partial: temporary files of running or killed processes, and published tars that
        staged ones will replace.
    """

    name: str
    info: Optional[Path] = None
    codec: Optional[Path] = None
    tars: dict[str, Path] = field(default_factory=dict)
    states: dict[str, Path] = field(default_factory=dict)
    partial: list[Path] = field(default_factory=list)

    @property
    def is_ours(self) -> bool:
        """True if this package wrote the field, False if another program did."""
        return bool(self.info or self.states or self.partial or self.codec)

    def paths(self) -> list[Path]:
        """Return all files in a safe order of deletion.

        The description is first and the states are next: an interrupted deletion leaves
        an unfinished field.
        """
        first = [self.info] if self.info else []
        last = [self.codec] if self.codec else []
        shards = [d[s] for d in (self.states, self.tars) for s in sorted(d)]
        return first + shards + sorted(self.partial) + last

    def check_tars(self, info: FieldInfo, ids: Sequence[str]) -> Problems:
        """Return the shards that are missing, of another size, or without cuts.

        Args:
          ids: shards of cuts.
        """
        entries = {s["name"]: s for s in info.shards}
        problems: Problems = {}
        for shard in ids:
            name = f"{self.name}.{shard}.tar"
            tar, entry = self.tars.get(shard), entries.pop(name, None)
            if tar is None or entry is None:
                problems.setdefault("missing shards", []).append(name)
            elif check_tar(tar, entry["bytes"]):
                problems.setdefault("shards of another size", []).append(name)
        orphans = set(entries) | {self.tars[s].name for s in set(self.tars) - set(ids)}
        if orphans:
            problems["shards without cuts"] = sorted(orphans)
        return problems

    def load_state(self, shard: str) -> Optional[ShardState]:
        """Return the state of a shard; None if it is damaged, or a file is missing."""
        if shard not in self.tars or shard not in self.states:
            return None
        try:
            return load_shard_state(self.states[shard])
        except ValueError:
            return None

    def count_targets(
        self, shar_dir: Pathlike, ids: Sequence[str]
    ) -> tuple[int, int, Problems]:
        """Return the numbers of cuts with a target and of all cuts, and problems."""
        joined = total = 0
        problems: Problems = {}
        for shard in ids:
            state, cuts = self.load_state(shard), cuts_path(shar_dir, shard)
            if state is not None and sha256_file(cuts) == state.cuts_sha256:
                joined, total = joined + state.num_cuts, total + state.num_cuts
                continue
            keys = read_keys(cuts)
            found = compare_keys(keys, state.keys if state is not None else [])
            total += len(keys)
            joined += len(keys)
            joined -= sum(len(x) for kind, x in found.items() if kind != "out of order")
            add_problems(problems, found)
        return joined, total, problems


def find_fields(shar_dir: Pathlike) -> dict[str, FieldFiles]:
    """Return the files of all fields, by name, sorted.

    Includes tars of other programs, see :attr:`FieldFiles.is_ours`.  A JSON file
    without other files is included only if it is a :class:`FieldInfo`.

    Raises:
      FileNotFoundError: if the folder does not exist.
    """
    found: dict[str, FieldFiles] = {}
    for path in list_shar(shar_dir):
        if path.suffix == ".tar":
            _add_file(path, found)
    folders = fields_dir(shar_dir)
    for folder in folders.iterdir() if folders.is_dir() else ():
        for path in folder.iterdir() if folder.is_dir() else ():
            _add_file(path, found)
    return {
        name: files
        for name, files in sorted(found.items())
        if len(files.paths()) > 1 or not files.info or _is_info(shar_dir, name)
    }


def get_field_files(shar_dir: Pathlike, name: str) -> FieldFiles:
    """Return the files of one field.

    Raises:
      FileNotFoundError: if the field does not exist; the message lists those that do.
      ValueError: if the name is reserved by Shar.
    """
    check_field_name(name)
    fields = find_fields(shar_dir)
    if name not in fields:
        raise FileNotFoundError(
            f"{shar_dir}: field '{name}' does not exist. Available: "
            f"{', '.join(fields) or 'none'}"
        )
    return fields[name]


def _add_file(path: Path, found: dict[str, FieldFiles]) -> None:
    partial = _PARTIAL.fullmatch(path.name)
    match = _NAME.fullmatch(partial.group(1) if partial else path.name)
    if match is None or match.group(1) in RESERVED:
        return
    name, shard, kind, single = match.groups()
    files = found.setdefault(name, FieldFiles(name))
    if partial:
        files.partial.append(path)
    elif kind == "tar":
        if shard in files.tars:  # staged tars come after published ones
            files.partial.append(files.tars[shard])
        files.tars[shard] = path
    elif kind == "json":
        files.states[shard] = path
    elif single == "json":
        files.info = path
    else:
        files.codec = path


def _is_info(shar_dir: Pathlike, name: str) -> bool:
    try:
        load_field_info(shar_dir, name)
    except ValueError:
        return False
    return True
