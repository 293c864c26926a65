"""Open Shar folders with fields, and read the frames of single cuts.

``open_shar`` joins each field with the cuts before it returns, see
:mod:`icefall_kd.fields.join`.  The join reads no arrays.
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
from icefall_kd.fields.frames import Frames, locate_frames
from icefall_kd.fields.integrity import check_tar
from icefall_kd.fields.join import (
    Problems,
    add_problems,
    compare_keys,
    describe_problems,
    match_keys,
    read_keys,
)
from icefall_kd.fields.shards import Shard, ShardCuts, read_ids

Expectation = Mapping[str, Mapping[str, Any]]  # field -> part of its fingerprint
MISSING = ("error", "skip")  # ways to handle cuts without a target
_TIME_TRANSFORMS = {"Speed", "Tempo"}  # lhotse's transforms of a recording
_EXAMPLES = 5


@dataclass
class Join:
    """Result of joining a field with the cuts of a folder.

    Attributes:
      problems: problems of all shards; empty if all cuts join.
      stored_as: shard -> its exceptions, see
        :func:`icefall_kd.fields.join.match_keys`; None for a shard without targets.
        Shards without exceptions are absent.
      num_cuts: number of cuts in the folder.
      missing: ids of the cuts without a target.
    """

    problems: Problems = field(default_factory=dict)
    stored_as: dict[str, Optional[dict[str, Optional[str]]]] = field(
        default_factory=dict
    )
    num_cuts: int = 0
    missing: list[str] = field(default_factory=list)

    def add(
        self,
        shard: str,
        cut_ids: Sequence[str],
        problems: Problems,
        stored_as: Optional[dict[str, Optional[str]]],
    ) -> None:
        """Add a shard with problems; arguments as the attributes."""
        add_problems(self.problems, problems)
        self.stored_as[shard] = stored_as
        self.num_cuts += len(cut_ids)
        self.missing += [
            i for i in cut_ids if stored_as is None or stored_as.get(i, i) is None
        ]


def check_field(
    shar_dir: Pathlike, name: str, expected: Optional[Mapping[str, Any]] = None
) -> FieldInfo:
    """Check that a field has a target for every cut, and return its description.

    Args:
      expected: see :func:`join_field`.
    Raises:
      FileNotFoundError: if the field is missing or unfinished.
      ValueError: if a cut has no target, or the fingerprint is not the expected one.
    """
    problems = join_field(shar_dir, name, expected).problems
    if problems:
        raise ValueError(
            f"{shar_dir}: field '{name}' does not join its cuts:\n"
            f"{describe_problems(problems)}\nRun 'python -m icefall_kd.bin.extract "
            f"--shar-dir {shar_dir} --field {name} ...' to write these shards again, "
            "or set data.missing: skip to train those cuts without it"
        )
    return load_field_info(shar_dir, name)


def join_field(
    shar_dir: Pathlike, name: str, expected: Optional[Mapping[str, Any]] = None
) -> Join:
    """Find the target of every cut of a folder.

    The keys of a shard are compared only if its manifest of cuts has changed.

    Args:
      expected: keys and values that the fingerprint must have; other keys are ignored.
    Raises:
      FileNotFoundError: if the field is missing or unfinished.
      ValueError: if the fingerprint is not the expected one.
    """
    info = load_field_info(shar_dir, name)
    differences = fingerprint_differences(
        expected or {}, info.fingerprint, only_wanted=True
    )
    if differences:
        raise ValueError(
            f"{shar_dir}: field '{name}' differs from data.expect: "
            + "; ".join(differences)
            + ". Correct the configuration, or extract the field again with --overwrite"
        )
    entries = {s["name"]: s for s in info.shards}
    join = Join()
    for shard in shard_ids(shar_dir):
        entry = entries.pop(tar_path(shar_dir, name, shard).name, None)
        _join_shard(join, shar_dir, name, shard, entry)
    if entries:
        join.problems["shards without cuts"] = sorted(entries)
    return join


def _join_shard(
    join: Join,
    shar_dir: Pathlike,
    name: str,
    shard: str,
    entry: Optional[dict[str, Any]],
) -> None:
    cuts, tar = cuts_path(shar_dir, shard), tar_path(shar_dir, name, shard)
    fault = check_tar(tar, entry["bytes"]) if entry is not None else "missing"
    unchanged = entry is not None and sha256_file(cuts) == entry["cuts_sha256"]
    if unchanged and not fault:
        join.num_cuts += entry["num_cuts"]
        return
    keys = read_keys(cuts)
    ids = [key[0] for key in keys]
    if fault == "missing":
        join.add(shard, ids, {"missing shards": [tar.name]}, None)
        return
    state = state_path(shar_dir, name, shard)
    if not unchanged and not state.is_file():
        join.add(shard, ids, {"shards without keys": [state.name]}, None)
        return
    stored = keys if unchanged else load_shard_state(state).keys
    problems = compare_keys(keys, stored)
    if fault:
        problems["damaged shards"] = [tar.name]
        intact = set(read_ids(tar))
        stored = [key for key in stored if key[0] in intact]
    if problems:
        join.add(shard, ids, problems, match_keys(keys, stored))
    else:  # another manifest of the same cuts
        join.num_cuts += len(ids)


def _join_partly(
    shar_dir: Pathlike, name: str, expected: Optional[Mapping[str, Any]]
) -> Join:
    """Join a field, which may be missing, and log the cuts without a target."""
    try:
        join = join_field(shar_dir, name, expected)
    except FileNotFoundError as e:
        join = Join()
        for shard in shard_ids(shar_dir):
            cut_ids = [key[0] for key in read_keys(cuts_path(shar_dir, shard))]
            join.add(shard, cut_ids, {}, None)
        join.problems = {"no field": [str(e)]}
    examples = join.missing[:_EXAMPLES]
    if join.problems:
        logging.warning(
            "%s: field '%s': %d of %d cuts have no target%s\n%s",
            shar_dir,
            name,
            len(join.missing),
            join.num_cuts,
            f", for example {'; '.join(examples)}" if examples else "",
            describe_problems(join.problems),
        )
    return join


def open_shar(
    shar_dir: Pathlike,
    fields: Sequence[str] = (),
    expect: Optional[Expectation] = None,
    missing: str = "error",
) -> CutSet:
    """Return the cuts of a Shar folder with audio and the named fields.

    Args:
      shar_dir: folder or URL with cuts.*.jsonl.gz, recording.*.tar, <field>.*.tar; the
        folder <shar_dir>.fields describes the fields.
      fields: names of the fields to read.
      expect: field -> keys and values that its fingerprint must have, for example
        {"whisper_base": {"layer": "last"}}.
      missing: "error" requires a target for every cut; "skip" logs the cuts without a
        target, and finds the target of a renamed cut by its audio.
    Returns:
      a lazy CutSet; ``load_field(cut, name, codec)`` returns the frames of a cut.
    Raises:
      FileNotFoundError: if the folder, a shard of audio or a field is missing.
      ValueError: if a field does not join the cuts, its fingerprint differs, or cuts
        are invalid, see :func:`icefall_kd.data.cuts.check_cuts`.
    """
    shards = open_shards(shar_dir, fields, expect, missing)
    check_cuts(shards, str(shar_dir), labelled=True)
    return CutSet(ShardCuts(shards))


def open_shards(
    shar_dir: Pathlike,
    fields: Sequence[str] = (),
    expect: Optional[Expectation] = None,
    missing: str = "error",
) -> tuple[Shard, ...]:
    """Return the shards of a Shar folder in order; arguments as :func:`open_shar`."""
    if missing not in MISSING:
        raise ValueError(f"missing is '{missing}'. Available: {', '.join(MISSING)}")
    ids = shard_ids(shar_dir)
    joins = {}
    for name in fields:
        expected = (expect or {}).get(name)
        if missing == "error":
            check_field(shar_dir, name, expected)
            joins[name] = Join()
        else:
            joins[name] = _join_partly(shar_dir, name, expected)
    shards = tuple(_make_shard(shar_dir, shard, joins) for shard in ids)
    audio = [shard.tars["recording"] for shard in shards]
    absent = [str(path) for path in audio if not path.is_file()]
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} shards of audio are missing, for example "
            f"{', '.join(absent[:_EXAMPLES])}. Copy them, or write the set again with "
            "icefall_kd.bin.make_shar"
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


def load_field(cut: Cut, name: str, codec: Codec) -> np.ndarray:
    """Return the decoded frames of a cut in a field, (T, W) float32, T >= 1.

    For a truncated cut, returns the frames of its time span.

    Args:
      name: name of the field.
      codec: codec of the field, see
        :func:`icefall_kd.fields.codecs.storage.load_codec`.
    Raises:
      ValueError: see :func:`find_frames` and :func:`read_frames`.
    """
    frames = find_frames(cut, name)
    out = np.empty(frames.shape, frames.dtype)
    read_frames(cut, name, frames, out)
    return codec.decode(out)


def find_frames(cut: Cut, name: str) -> Frames:
    """Return the location of a cut's compressed frames in a field.

    Raises:
      ValueError: if the cut does not have the field, the field is damaged, or the speed
        of the cut was changed after the extraction; the message names the cut.
    """
    if not isinstance(cut, DataCut):
        raise ValueError(
            f"cut '{cut.id}' is a {type(cut).__name__}, but field '{name}' can be read "
            "for single cuts only. Save mixed, padded or appended cuts "
            "(CutSet.save_audios of lhotse) and write them to Shar before extraction"
        )
    if not cut.has_custom(name):
        raise ValueError(
            f"cut '{cut.id}' has no field '{name}'. Name the field in open_shar(...)"
        )
    transforms = (cut.recording.transforms if cut.has_recording else None) or ()
    names = [t["name"] if isinstance(t, dict) else type(t).__name__ for t in transforms]
    changed = [n for n in names if n in _TIME_TRANSFORMS]
    if changed:
        raise ValueError(
            f"cut '{cut.id}': {changed[0]} changed its audio after field '{name}' was "
            "extracted. Change the speed with bin.make_shar, then extract the field"
        )
    array = cut.custom[name]
    try:
        frames = locate_frames(array.array)
    except (ValueError, EOFError, OSError) as e:
        raise _damaged(cut, name, e) from e
    total, offset = frames.shape[0], cut.start - array.start
    if offset < -1e-5 or not total:
        raise ValueError(
            f"cut '{cut.id}' starts at {cut.start} s, but field '{name}' has {total} "
            f"frames from {array.start} s on. Extract the field again"
        )
    first = min(_nearest_frame(max(0.0, offset), array.frame_shift), total - 1)
    return frames.part(first, count_frames(cut.duration, array.frame_shift))


def read_frames(cut: Cut, name: str, frames: Frames, out: np.ndarray) -> None:
    """Read the frames of a cut into ``out``.

    Args:
      frames: location of the frames, see :func:`find_frames`.
      out: contiguous array of the shape and dtype of the frames.
    Raises:
      ValueError: if the file is damaged; the message names the cut.
    """
    try:
        frames.read_into(out)
    except (EOFError, OSError) as e:
        raise _damaged(cut, name, e) from e


def count_frames(duration: float, frame_shift: float) -> int:
    """Return the number of a teacher's frames in ``duration`` seconds, at least 1."""
    return max(1, _nearest_frame(duration, frame_shift))


def _nearest_frame(seconds: float, frame_shift: float) -> int:
    # Rounds half up, as lhotse's seconds_to_frames.
    return math.floor(round(seconds / frame_shift, 8) + 0.5)


def _damaged(cut: Cut, name: str, error: Exception) -> ValueError:
    return ValueError(
        f"cut '{cut.id}': its field '{name}' is damaged ({error}). Extract the field "
        "again with 'python -m icefall_kd.bin.extract'"
    )


def read_texts(shar_dirs: Sequence[str]) -> list[str]:
    """Return the distinct transcripts of Shar folders, sorted."""
    texts = set()
    for shar_dir in shar_dirs:
        shards = [
            Shard(cuts_path(shar_dir, shard), {}) for shard in shard_ids(shar_dir)
        ]
        check_cuts(shards, str(shar_dir), labelled=True)
        for line in (line for shard in shards for line in shard.lines()):
            texts |= {
                s["text"] for s in line.get("supervisions") or [] if s.get("text")
            }
    return sorted(texts)
