"""Remove fields, and copy them between Shar folders of the same cuts."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Optional

from icefall_kd.core.files import (
    Pathlike,
    as_path,
    is_local,
    remove_stale_temporaries,
    sha256_file,
    write_atomically,
)
from icefall_kd.fields.codecs import Codec
from icefall_kd.fields.codecs.storage import (
    codec_path,
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
    fingerprint_differences,
    info_path,
    load_shard_state,
    publish_tars,
    save,
    shard_ids,
    staged_path,
    state_path,
    tar_path,
)
from icefall_kd.fields.integrity import (
    check_join,
    find_fields,
    get_field_files,
    load_complete_state,
)
from icefall_kd.fields.join import Problems, add_problems, describe_problems
from icefall_kd.fields.planner import check_disk
from icefall_kd.fields.reader import check_field
from icefall_kd.fields.verify import Fault

Progress = Callable[[int, int], None]  # (bytes copied, bytes to copy)


@dataclasses.dataclass(frozen=True)
class CopyResult:
    """Result of :func:`copy_field`.

    Attributes:
      info: description of the field in the target folder.
      shards_done: number of shards that were copied.
      shards_kept: number of shards that the target already had.
    """

    info: FieldInfo
    shards_done: int
    shards_kept: int


def list_removable(shar_dir: Pathlike, field: str) -> list[Path]:
    """Return a field's files in the order in which to delete them.

    Raises:
      FileNotFoundError: if the folder or the field does not exist.
      ValueError: if the name is reserved by Shar, or another program wrote the field.
    """
    files = get_field_files(shar_dir, field)
    if not files.is_ours:
        raise ValueError(
            f"{shar_dir}: field '{field}' has no description: another program wrote "
            "it. Delete its files by hand"
        )
    return files.paths()


def remove_field(shar_dir: Pathlike, field: str) -> list[Path]:
    """Delete the files of a field and return them.

    Raises:
      FileNotFoundError, ValueError: as :func:`list_removable`.
    """
    paths = list_removable(shar_dir, field)
    for path in paths:
        path.unlink(missing_ok=True)
    folder = field_dir(shar_dir, field)
    if is_local(folder):  # object stores have no folders
        for empty in (folder, folder.parent):
            with contextlib.suppress(OSError):  # not empty, or removed already
                empty.rmdir()
    return paths


def delete_damaged(faults: Iterable[Fault]) -> list[Path]:
    """Delete the damaged files that the faults list, and return them.

    The field is then unfinished; the next extraction completes it.
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
) -> CopyResult:
    """Copy a finished field to another Shar folder of the same cuts.

    Copies each shard to a temporary file, compares its SHA-256 and renames it.  Moves
    the arrays to the Shar folder when all are complete, then writes the description.
    After a kill, the same call skips complete shards.

    Args:
      overwrite: replace a field of another fingerprint in the target.
      progress: function called after each copied shard.
    Raises:
      FileNotFoundError: if a folder or the field does not exist, or the field is
        unfinished.
      ValueError: if the field does not join the cuts of both folders, a shard of the
        source is damaged, or the target has a field of another fingerprint.
      OSError: if the disk of the target is too full, before anything is written.
    """
    if as_path(source) == as_path(target):
        raise ValueError(
            f"{source}: source and target are one folder. Give another target folder"
        )
    info = check_field(source, field)
    codec = load_codec(source, info)
    states = {s: _load_state(source, field, s) for s in shard_ids(source)}
    _check_cuts(target, states)
    if not overwrite:
        _check_target(target, info)
    reused = {s for s in states if _is_copied(target, field, s, states[s])}
    todo = [s for s in states if s not in reused]
    done, total = 0, sum(states[s].bytes for s in todo)
    if todo:
        check_disk(target, {field: total})
        info_path(target, field).unlink(missing_ok=True)  # marks it unfinished
    origin = read_origin(source, field) if codec.state() else None
    _prepare_target(target, field, codec, origin)
    # The target may compress the same cuts differently, which changes their checksum.
    states = {
        s: dataclasses.replace(x, cuts_sha256=sha256_file(cuts_path(target, s)))
        for s, x in states.items()
    }
    for shard in todo:
        _copy_shard(source, target, field, shard, states[shard])
        done += states[shard].bytes
        if progress is not None:
            progress(done, total)
    publish_tars(target, field, list(states))
    digests = {state.tar: state.cuts_sha256 for state in states.values()}
    shards = [{**s, "cuts_sha256": digests[s["name"]]} for s in info.shards]
    info = dataclasses.replace(info, shards=shards)
    save(info, info_path(target, field))
    return CopyResult(info, len(todo), len(reused))


def _load_state(source: Pathlike, field: str, shard: str) -> ShardState:
    path = state_path(source, field, shard)
    if not path.is_file():
        raise ValueError(
            f"{path}: the state of a shard is missing. Run icefall_kd.bin.extract, "
            "which writes the shard again"
        )
    return load_shard_state(path)


def _check_cuts(target: Pathlike, states: Mapping[str, ShardState]) -> None:
    """Check that the field joins the cuts of the target.

    Raises:
      ValueError: if it does not; the message has counts and examples of each problem.
    """
    ids = shard_ids(target)
    problems: Problems = {}
    if ids != list(states):
        one_sided = sorted(set(ids) ^ set(states))
        problems["shards of cuts that only one folder has"] = one_sided
    for shard in sorted(set(ids) & set(states)):
        add_problems(problems, check_join(cuts_path(target, shard), states[shard]))
    if problems:
        raise ValueError(
            f"{target}: its cuts differ from those of the field:\n"
            f"{describe_problems(problems)}\nCopy cuts and audio too, or extract the "
            "field there"
        )


def _check_target(target: Pathlike, info: FieldInfo) -> None:
    """Check that the copy replaces no field of another teacher, layer or codec.

    Raises:
      ValueError: if it would; the message lists the differences.
    """
    files = find_fields(target).get(info.name)
    if files is None:
        return
    differences: list[str] = []
    for path in files.states.values():
        try:
            found: dict[str, Any] = load_shard_state(path).fingerprint
        except ValueError:  # damaged; its shard is copied again
            continue
        differences = fingerprint_differences(info.fingerprint, found)
        if differences:
            break
    if not files.is_ours:
        differences = ["it has no description, so another program wrote it"]
    elif files.codec is not None and not differences:
        if read_codec(target, info.name).sha256() != info.codec_sha256:
            differences = [f"{files.codec.name} was trained separately"]
    if differences:
        raise ValueError(
            f"{target}: field '{info.name}' exists with another fingerprint: "
            f"{'; '.join(differences)}. Give --overwrite to replace it"
        )


def _is_copied(target: Pathlike, field: str, shard: str, state: ShardState) -> bool:
    """Return whether the target has an equal and complete copy of a shard."""
    copied = load_complete_state(target, field, shard)
    return copied is not None and (
        (copied.sha256, copied.fingerprint) == (state.sha256, state.fingerprint)
    )


def _prepare_target(
    target: Pathlike, field: str, codec: Codec, origin: Optional[Mapping[str, Any]]
) -> None:
    """Write the codec, which the arrays need; remove stale temporary files."""
    remove_stale_temporaries(field_dir(target, field), f"{field}.*")
    if codec.state():
        save_codec(codec, target, field, origin)
    else:
        codec_path(target, field).unlink(missing_ok=True)


def _copy_shard(
    source: Pathlike, target: Pathlike, field: str, shard: str, state: ShardState
) -> None:
    """Copy the arrays of one shard, then write its state.

    Raises:
      ValueError: if the arrays do not have the checksum of the state.
    """
    old, new = tar_path(source, field, shard), staged_path(target, field, shard)
    path = state_path(target, field, shard)
    path.unlink(missing_ok=True)
    with write_atomically(new) as temporary:
        with old.open("rb") as reading, temporary.open("wb") as writing:
            shutil.copyfileobj(reading, writing, 1 << 20)
        if sha256_file(temporary) != state.sha256:
            raise ValueError(
                f"{old}: damaged, another SHA-256 than in its {path.name}. Run "
                "'python -m icefall_kd.bin.fields verify' on the source folder"
            )
    # A store may truncate an upload; a local file was hashed before its rename.
    if not is_local(new) and sha256_file(new) != state.sha256:
        new.unlink()
        raise ValueError(f"{new}: damaged by the upload. Run the copy again")
    save(state, path)
