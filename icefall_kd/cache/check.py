"""Which targets of a field belong to which cuts of its folder.

This is done before every training, so no array is read: a shard of the size that it was
written with counts as whole (``icefall_kd.cache.verify`` reads every byte).  Of one of
another size, the targets that are still there are used where that is allowed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from icefall_kd.cache.field import (
    FieldInfo,
    cuts_path,
    fingerprint_differences,
    load_field_info,
    load_shard_state,
    shard_ids,
    state_path,
    tar_path,
)
from icefall_kd.cache.join import compare_keys, describe, join_keys, read_keys
from icefall_kd.cache.shards import stored_ids
from icefall_kd.io import Pathlike, sha256_file

_EXAMPLES = 5


@dataclass
class Join:
    """Which cuts of a folder have a target in a field, and under which id.

    Attributes:
      problems: kind -> one line a case; empty where all cuts join.
      stored_as: shard -> its exceptions, see :func:`icefall_kd.cache.join.join_keys`;
        None for a shard without any target.  Shards that join are not in it.
      num_cuts, num_missing: in the folder; without a target.
      missing: ids of the first few of these.
    """

    problems: dict[str, list[str]] = field(default_factory=dict)
    stored_as: dict[str, Optional[dict[str, Optional[str]]]] = field(
        default_factory=dict
    )
    num_cuts: int = 0
    num_missing: int = 0
    missing: list[str] = field(default_factory=list)

    def add(
        self,
        shard: str,
        cut_ids: Sequence[str],
        problems: Mapping[str, list[str]],
        stored_as: Optional[dict[str, Optional[str]]],
    ) -> None:
        """Take in a shard that does not simply join."""
        for kind, cases in problems.items():
            self.problems.setdefault(kind, []).extend(cases)
        self.stored_as[shard] = stored_as
        without = [
            i for i in cut_ids if stored_as is None or stored_as.get(i, i) is None
        ]
        self.num_cuts += len(cut_ids)
        self.num_missing += len(without)
        self.missing += without[: _EXAMPLES - len(self.missing)]


def check_field(
    shar_dir: Pathlike, name: str, expected: Optional[Mapping[str, Any]] = None
) -> FieldInfo:
    """Prove that a field belongs to the cuts of its folder, to every one.

    Returns:
      the field's description.
    Raises:
      FileNotFoundError: if the field is missing or unfinished.
      ValueError: with counts and five examples of each problem.
    """
    problems = join_field(shar_dir, name, expected).problems
    if problems:
        raise ValueError(
            f"{shar_dir}: field '{name}' does not join its cuts:\n"
            f"{describe(problems)}\nRemedy: 'python -m icefall_kd.bin.extract "
            f"--shar-dir {shar_dir} --field {name} ...' makes the shards concerned "
            "again; or train those cuts without it with data.missing: skip"
        )
    return load_field_info(shar_dir, name)


def join_field(
    shar_dir: Pathlike, name: str, expected: Optional[Mapping[str, Any]] = None
) -> Join:
    """Find the target of every cut of a folder.

    While the file of the cuts is the one that the field was made from, its checksum
    proves that they belong together; otherwise each cut is compared by recording,
    start, duration and speed.

    Raises:
      FileNotFoundError: if the field is missing or unfinished.
      ValueError: if its fingerprint is not the one expected.
    """
    info = load_field_info(shar_dir, name)
    differences = fingerprint_differences(
        dict(expected or {}), info.fingerprint, only_wanted=True
    )
    if differences:
        raise ValueError(
            f"{shar_dir}: field '{name}' is not what the configuration expects: "
            + "; ".join(differences)
            + ". Correct the configuration, or extract the field again with --overwrite"
        )
    known = {s["name"]: s for s in info.shards}
    join = Join()
    for shard in shard_ids(shar_dir):
        entry = known.pop(tar_path(shar_dir, name, shard).name, None)
        _join_shard(join, shar_dir, name, shard, entry)
    if known:
        join.problems["shards without cuts"] = sorted(known)
    return join


def _join_shard(
    join: Join,
    shar_dir: Pathlike,
    name: str,
    shard: str,
    entry: Optional[dict[str, Any]],
) -> None:
    cuts, tar = cuts_path(shar_dir, shard), tar_path(shar_dir, name, shard)
    unchanged = entry is not None and sha256_file(cuts) == entry["cuts_sha256"]
    whole = entry is not None and tar.is_file() and tar.stat().st_size == entry["bytes"]
    if unchanged and whole:
        join.num_cuts += entry["num_cuts"]
        return
    keys = read_keys(cuts)
    ids = [key[0] for key in keys]
    if entry is None or not tar.is_file():
        join.add(shard, ids, {"missing shards": [tar.name]}, None)
        return
    state = state_path(shar_dir, name, shard)
    if not unchanged and not state.is_file():
        join.add(shard, ids, {"shards without keys": [state.name]}, None)
        return
    stored = keys if unchanged else load_shard_state(state).keys
    problems = compare_keys(keys, stored)
    if not whole:
        problems["damaged shards"] = [tar.name]
        there = set(stored_ids(tar))
        stored = [key for key in stored if key[0] in there]
    if problems:
        join.add(shard, ids, problems, join_keys(keys, stored))
    else:  # the cuts' file is another one, with the same cuts
        join.num_cuts += len(ids)
