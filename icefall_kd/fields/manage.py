"""Removes fields and copies them between Shar folders of the same cuts."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Callable, Optional

from icefall_kd.core.files import (
    Pathlike,
    as_path,
    is_local,
    remove_stale_temporaries,
    sha256_file,
    write_atomically,
)
from icefall_kd.fields.audit import Fault
from icefall_kd.fields.codecs import Codec
from icefall_kd.fields.codecs.storage import (
    codec_path,
    codec_sha256,
    load_codec,
    read_codec,
    read_origin,
    save_codec,
)
from icefall_kd.fields.format import (
    FieldInfo,
    ShardState,
    cuts_path,
    field_dir,
    find_tar,
    fingerprint_differences,
    info_path,
    load_shard_state,
    publish,
    save,
    shard_ids,
    staged_path,
    state_path,
    tar_path,
)
from icefall_kd.fields.join import compare_keys, describe, read_keys
from icefall_kd.fields.planner import check_disk
from icefall_kd.fields.reader import check_field
from icefall_kd.fields.survey import field_files, find_fields

Progress = Callable[[int, int], None]  # (bytes copied now, bytes to copy)


@dataclasses.dataclass(frozen=True)
class Copied:
    """What a copy did: the description there, and shards written and found whole."""

    info: FieldInfo
    shards_done: int
    shards_kept: int


def removable(shar_dir: Pathlike, field: str) -> list[Path]:
    """Return a field's files, in the order in which they may be deleted.

    Raises:
      FileNotFoundError: if the folder or the field does not exist.
      ValueError: if the field is one of Shar's own, or another program's.
    """
    files = field_files(shar_dir, field)
    if not files.described:
        raise ValueError(
            f"{shar_dir}: '{field}' has no description, so it was not written by "
            "icefall_kd.bin.extract; delete its files by hand if you mean to"
        )
    return files.paths()


def remove(shar_dir: Pathlike, field: str) -> list[Path]:
    """Delete a field's files and nothing else; else as :func:`removable`.

    Returns:
      what was deleted.
    """
    paths = removable(shar_dir, field)
    for path in paths:
        path.unlink(missing_ok=True)
    folder = field_dir(shar_dir, field)
    if is_local(folder):  # a store has no folders of their own
        for empty in (folder, folder.parent):
            with contextlib.suppress(OSError):  # holds something else, or is gone
                empty.rmdir()
    return paths


def delete_damaged(faults: Iterable[Fault]) -> list[Path]:
    """Delete the files that faults call damaged; returns them.

    What is left is an unfinished field, which the next extraction completes.
    """
    paths = list(dict.fromkeys(p for fault in faults for p in fault.damaged))
    for path in paths:
        path.unlink(missing_ok=True)
    return paths


def copy_field(
    source: Pathlike,
    target: Pathlike,
    field: str,
    *,
    overwrite: bool = False,
    progress: Optional[Progress] = None,
) -> Copied:
    """Copy a finished field to another Shar folder of the same cuts.

    Each shard is written aside, hashed as it lies there and only then takes its name;
    they enter the Shar folder together, and the description comes last.  Killed and
    started again, it keeps the shards that are whole.

    Args:
      overwrite: replace a field of another fingerprint instead of refusing.
    Raises:
      FileNotFoundError: if a folder or the field does not exist, or is unfinished.
      ValueError: if the field does not join the cuts of either folder, a shard of the
        source is damaged, or the target has a field of another fingerprint.
      OSError: if the target has no room, before anything is written.
    """
    if as_path(source) == as_path(target):
        raise ValueError(f"{source}: source and target of a copy are one folder")
    info = check_field(source, field)
    codec = load_codec(source, info)
    ids = shard_ids(source)
    states = {s: _load_state(source, field, s) for s in ids}
    _check_cuts(target, states)
    _check_target(target, info, overwrite)
    kept = {s for s in ids if _is_copied(target, field, s, states[s])}
    todo = [s for s in ids if s not in kept]
    done, total = 0, sum(states[s].bytes for s in todo)
    if todo:
        check_disk(target, {field: total})
        info_path(target, field).unlink(missing_ok=True)  # absent = unfinished
    origin = read_origin(source, field) if codec.state() else None
    _begin(target, field, codec, origin)
    copied = {s: _renewed(target, s, states[s]) for s in ids}
    for shard in todo:
        _copy_shard(source, target, field, shard, copied[shard])
        done += states[shard].bytes
        if progress is not None:
            progress(done, total)
    publish(target, field, ids)
    new = _described(info, copied)
    save(new, info_path(target, field))
    return Copied(new, len(todo), len(kept))


def _load_state(source: Pathlike, field: str, shard: str) -> ShardState:
    path = state_path(source, field, shard)
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: it tells whose arrays the shard holds; run "
            "icefall_kd.bin.extract again, which makes that shard again"
        )
    return load_shard_state(path)


def _check_cuts(target: Pathlike, states: dict[str, ShardState]) -> None:
    """Prove that the cuts of the target are those that the field was made from.

    Raises:
      ValueError: with counts and five examples of each problem.
    """
    ids = shard_ids(target)
    problems: dict[str, list[str]] = {}
    if ids != list(states):
        there, here = set(ids), set(states)
        problems["shards of cuts that only one folder has"] = sorted(there ^ here)
    for shard in ids:
        if shard not in states or _same_cuts(target, shard, states[shard]):
            continue
        keys = read_keys(cuts_path(target, shard))
        for kind, cases in compare_keys(keys, states[shard].keys).items():
            problems.setdefault(kind, []).extend(cases)
    if problems:
        raise ValueError(
            f"{target}: its cuts are not those of the field:\n{describe(problems)}\n"
            "Copy the cuts and the audio too, or extract the field there"
        )


def _same_cuts(target: Pathlike, shard: str, state: ShardState) -> bool:
    return sha256_file(cuts_path(target, shard)) == state.cuts_sha256


def _check_target(target: Pathlike, info: FieldInfo, overwrite: bool) -> None:
    """Refuse to replace what another teacher, layer or codec wrote.

    Raises:
      ValueError: naming the differences.
    """
    files = find_fields(target).get(info.name)
    if files is None or overwrite:
        return
    differences: list[str] = []
    for path in files.states.values():
        try:
            found: dict[str, Any] = load_shard_state(path).fingerprint
        except ValueError:  # of a shard that is damaged: it is copied again
            continue
        differences = fingerprint_differences(info.fingerprint, found)
        if differences:
            break
    if not files.described:
        differences = ["it has no description, so another program wrote it"]
    elif files.codec is not None and not differences:
        if codec_sha256(read_codec(target, info.name)) != info.codec_sha256:
            differences = [f"{files.codec.name} is of another training"]
    if differences:
        raise ValueError(
            f"{target}: field '{info.name}' is there with another fingerprint: "
            f"{'; '.join(differences)}. Give --overwrite to replace it"
        )


def _is_copied(target: Pathlike, field: str, shard: str, state: ShardState) -> bool:
    """Return whether a shard of the target is the source's, byte for byte."""
    path, tar = state_path(target, field, shard), find_tar(target, field, shard)
    if not (path.is_file() and tar.is_file()) or tar.stat().st_size != state.bytes:
        return False
    try:
        there = load_shard_state(path)
    except ValueError:
        return False
    same = there.sha256 == state.sha256 and there.fingerprint == state.fingerprint
    return same and sha256_file(tar) == state.sha256


def _begin(
    target: Pathlike, field: str, codec: Codec, origin: Optional[Mapping[str, Any]]
) -> None:
    """Write the codec before the arrays that need it, and sweep what was left."""
    remove_stale_temporaries(field_dir(target, field), f"{field}.*")
    if codec.state():
        save_codec(codec, target, field, origin)
    else:
        codec_path(target, field).unlink(missing_ok=True)


def _renewed(target: Pathlike, shard: str, state: ShardState) -> ShardState:
    """Return the state with the target's own file of cuts, which may be compressed
    otherwise while its cuts are the same."""
    digest = sha256_file(cuts_path(target, shard))
    return dataclasses.replace(state, cuts_sha256=digest)


def _copy_shard(
    source: Pathlike, target: Pathlike, field: str, shard: str, state: ShardState
) -> None:
    """Copy one shard's arrays, then the state that declares them whole.

    Raises:
      ValueError: if the arrays are not those that the state tells.
    """
    old, new = tar_path(source, field, shard), staged_path(target, field, shard)
    path = state_path(target, field, shard)
    path.unlink(missing_ok=True)
    with write_atomically(new) as aside:
        with old.open("rb") as reading, aside.open("wb") as writing:
            shutil.copyfileobj(reading, writing, 1 << 20)
        if sha256_file(aside) != state.sha256:
            raise ValueError(
                f"{old}: damaged, the SHA-256 is not the one of its {path.name}; "
                "'python -m icefall_kd.bin.fields verify' tells more"
            )
    # A store may keep less than it was sent; a local file was hashed in its place.
    if not is_local(new) and sha256_file(new) != state.sha256:
        new.unlink()
        raise ValueError(f"{new}: was changed on its way to the store; copy it again")
    save(state, path)


def _described(info: FieldInfo, states: dict[str, ShardState]) -> FieldInfo:
    """Return the description with the target's checksums of the cuts."""
    digests = {state.tar: state.cuts_sha256 for state in states.values()}
    shards = [{**s, "cuts_sha256": digests[s["name"]]} for s in info.shards]
    return dataclasses.replace(info, shards=shards)
