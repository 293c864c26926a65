"""Which targets of a field belong to which cuts of its folder.

This is done before every training, so no array is read: a shard of the size that it was
written with counts as whole (``icefall_kd.fields.integrity`` reads every byte).  Of one
of another size, the targets that are still there are used where that is allowed.

Opens Shar folders with fields, lazily, after proving that the fields join.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.cut.data import DataCut

from icefall_kd.core.files import Pathlike, sha256_file
from icefall_kd.data.cuts import check_cuts
from icefall_kd.fields.codecs import Codec
from icefall_kd.fields.format import (
    FieldInfo,
    cuts_path,
    fingerprint_differences,
    load_field_info,
    load_shard_state,
    shard_ids,
    state_path,
    tar_path,
)
from icefall_kd.fields.frames import Frames, find_frames
from icefall_kd.fields.join import compare_keys, describe, join_keys, read_keys
from icefall_kd.fields.shards import Shard, ShardCuts, stored_ids

_EXAMPLES = 5


@dataclass
class Join:
    """Which cuts of a folder have a target in a field, and under which id.

    Attributes:
      problems: kind -> one line a case; empty where all cuts join.
      stored_as: shard -> its exceptions, see :func:`icefall_kd.fields.join.join_keys`;
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


__all__ = [
    "MISSING",
    "Expectation",
    "check_field",
    "find_stored",
    "frames_of",
    "load_field",
    "load_stored",
    "open_shar",
    "read_stored",
    "shar_shards",
]

Expectation = Mapping[str, Mapping[str, Any]]
MISSING = ("error", "skip")  # what to do about cuts without a target
_CHANGES_TIME = {"Speed", "Tempo"}  # lhotse's transforms of a recording


def open_shar(
    shar_dir: Pathlike,
    fields: Sequence[str] = (),
    expect: Optional[Expectation] = None,
    missing: str = "error",
) -> CutSet:
    """Return the cuts of a Shar folder with audio and the fields named.

    Everything that can be wrong with a field is found here, before the first batch,
    and told in one message.

    Args:
      shar_dir: holds cuts.*.jsonl.gz, recording.*.tar and <field>.*.tar; its fields are
        described in the folder <shar_dir>.fields.
      fields:   read these and no others.
      expect:   field -> the part of its fingerprint that it must have, for example
                {"whisper_base": {"layer": "last"}}.
      missing:  "error" refuses a field that does not join in every cut; "skip" leaves
                the cuts without a target as they are, tells how many, and finds that
                of a renamed cut by its audio.
    Returns:
      a lazy CutSet; ``load_field(cut, name)`` gives a field's array.
    Raises:
      FileNotFoundError: if the folder or a shard of audio is missing, or a field.
      ValueError: if a field does not join the cuts, its fingerprint differs, or cuts
        cannot be used, see :func:`icefall_kd.data.cuts.check_cuts`.
    """
    shards = shar_shards(shar_dir, fields, expect, missing)
    check_cuts(shards, str(shar_dir), labelled=True)
    return CutSet(ShardCuts(shards))


def shar_shards(
    shar_dir: Pathlike,
    fields: Sequence[str] = (),
    expect: Optional[Expectation] = None,
    missing: str = "error",
) -> tuple[Shard, ...]:
    """Return the shards of a Shar folder in order; else as :func:`open_shar`."""
    if missing not in MISSING:
        raise ValueError(f"missing is '{missing}'; it can be one of {MISSING}")
    ids = shard_ids(shar_dir)
    joins = {}
    for name in fields:
        expected = (expect or {}).get(name)
        if missing == "error":
            check_field(shar_dir, name, expected)
            joins[name] = Join()
        else:
            joins[name] = _join_what_is_there(shar_dir, name, expected)
    shards = tuple(_make_shard(shar_dir, shard, joins) for shard in ids)
    audio = [shard.tars["recording"] for shard in shards]
    absent = [str(path) for path in audio if not path.is_file()]
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} shards of audio are missing, for example {absent[:5]}"
        )
    return shards


def _make_shard(shar_dir: Pathlike, shard: str, joins: Mapping[str, Join]) -> Shard:
    tars = {"recording": tar_path(shar_dir, "recording", shard)}
    exceptions = {}
    for name, join in joins.items():
        stored_as = join.stored_as.get(shard, {})
        if stored_as is None:
            continue
        tars[name] = tar_path(shar_dir, name, shard)
        if shard in join.stored_as:
            exceptions[name] = stored_as
    return Shard(cuts_path(shar_dir, shard), tars, exceptions)


def _join_what_is_there(
    shar_dir: Pathlike, name: str, expected: Optional[Mapping[str, Any]]
) -> Join:
    """Join a field as far as it goes, and log what has no target.

    Raises:
      ValueError: if its fingerprint is not the one expected.
    """
    try:
        join = join_field(shar_dir, name, expected)
    except FileNotFoundError as e:
        join = Join()
        for shard in shard_ids(shar_dir):
            cut_ids = [key[0] for key in read_keys(cuts_path(shar_dir, shard))]
            join.add(shard, cut_ids, {}, None)
        join.problems = {"no field": [str(e)]}
    if join.problems:
        logging.warning(
            "%s: field '%s': %d of %d cuts have no target%s\n%s",
            shar_dir,
            name,
            join.num_missing,
            join.num_cuts,
            f", for example {'; '.join(join.missing)}" if join.missing else "",
            describe(join.problems),
        )
    return join


def load_field(cut: Cut, name: str, codec: Codec) -> np.ndarray:
    """Return the field's frames under a cut, (T, W) float32, T >= 1.

    Args:
      codec: of the field, see :func:`icefall_kd.fields.codecs.storage.load_codec`.
    Raises:
      ValueError: as :func:`load_stored`.
    """
    return codec.decode(load_stored(cut, name))


def load_stored(cut: Cut, name: str) -> np.ndarray:
    """Return the field's frames under a cut as they are stored, T >= 1.

    A truncated cut gets the frames of its own time span.

    Raises:
      ValueError: as :func:`find_stored` and :func:`read_stored`.
    """
    frames = find_stored(cut, name)
    out = np.empty(frames.shape, frames.dtype)
    read_stored(cut, name, frames, out)
    return out


def find_stored(cut: Cut, name: str) -> Frames:
    """Return where the field's frames under a cut lie; nothing need be read.

    Raises:
      ValueError: if the cut carries no such field, or a damaged one, or not one of
        its own audio; the message names the cut.
    """
    if not isinstance(cut, DataCut):
        raise ValueError(
            f"cut '{cut.id}' is a {type(cut).__name__}: field '{name}' can be read of "
            "single cuts alone; write mixed, padded or appended cuts to files "
            "(CutSet.save_audios of lhotse), and those to Shar, before the extraction"
        )
    if not cut.has_custom(name):
        raise ValueError(
            f"cut '{cut.id}' carries no field '{name}'; name it in open_shar(...)"
        )
    _check_time(cut, name)
    return _frames_under(cut, name)


def read_stored(cut: Cut, name: str, frames: Frames, out: np.ndarray) -> None:
    """Read what :func:`find_stored` found into ``out``, of its shape and type.

    Raises:
      ValueError: if it cannot be read; the message names the cut.
    """
    try:
        frames.read_into(out)
    except (EOFError, OSError) as e:
        raise _damaged(cut, name, e) from e


def _check_time(cut: DataCut, name: str) -> None:
    transforms = (cut.recording.transforms if cut.has_recording else None) or ()
    names = [t["name"] if isinstance(t, dict) else type(t).__name__ for t in transforms]
    changed = [n for n in names if n in _CHANGES_TIME]
    if changed:
        raise ValueError(
            f"cut '{cut.id}' has field '{name}' of its audio before {changed[0]}; "
            "change the speed in bin.make_shar, and extract the result"
        )


def frames_of(duration: float, frame_shift: float) -> int:
    """Return the teacher's frames that belong to ``duration`` s, at least one."""
    return max(1, _nearest_frame(duration, frame_shift))


def _nearest_frame(seconds: float, frame_shift: float) -> int:
    """Return the nearest frame, the later of two, as lhotse's ``seconds_to_frames``."""
    return math.floor(round(seconds / frame_shift, 8) + 0.5)


def _frames_under(cut: DataCut, name: str) -> Frames:
    """Return the stored frames of a cut's own time, the nearest one at least."""
    array = cut.custom[name]
    try:
        frames = find_frames(array.array)
    except (ValueError, EOFError, OSError) as e:
        raise _damaged(cut, name, e) from e
    total, offset = frames.shape[0], cut.start - array.start
    if offset < -1e-5 or not total:
        raise ValueError(
            f"cut '{cut.id}' starts at {cut.start} s, where field '{name}' has no "
            f"frames (it has {total} from {array.start} s on)"
        )
    first = min(_nearest_frame(max(0.0, offset), array.frame_shift), total - 1)
    return frames.part(first, frames_of(cut.duration, array.frame_shift))


def _damaged(cut: Cut, name: str, error: Exception) -> ValueError:
    return ValueError(
        f"cut '{cut.id}': its field '{name}' is damaged ({error}); make it again with "
        "'python -m icefall_kd.bin.extract'"
    )
