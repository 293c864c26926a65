"""A field while it is being made: its codec, what is whole of it, its description."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from icefall_kd.core.files import Pathlike, remove_stale_temporaries
from icefall_kd.fields.codec_files import codec_sha256
from icefall_kd.fields.codecs import Codec
from icefall_kd.fields.format import (
    FieldInfo,
    ShardState,
    check_field_name,
    field_dir,
    fingerprint_differences,
    info_path,
    publish,
    save,
    shard_ids,
    staged_path,
    state_path,
    tar_path,
)
from icefall_kd.fields.integrity import Place, verified_state
from icefall_kd.teachers.protocol import Output, Teacher

VERSION = 1  # of the numbers written here; raise it when they change


@dataclass
class Making:
    """A field being made: what it is, and which of this process's shards are whole."""

    name: str
    output: Output
    codec: Codec
    fingerprint: dict[str, Any]
    whole: set[str]


def collect_outputs(teachers: Sequence[Teacher]) -> dict[str, Output]:
    """Return all outputs of several teachers by field name.

    Raises:
      ValueError: if two of them claim one name, or a name cannot be a field's.
    """
    outputs: dict[str, Output] = {}
    for teacher in teachers:
        for name, output in teacher.outputs.items():
            check_field_name(name)
            if name in outputs:
                raise ValueError(f"two teachers write the field '{name}'")
            outputs[name] = output
    return outputs


def begin_field(name: str, output: Output, codec: Codec) -> Making:
    """Return a field of which nothing is known to be whole yet.

    Raises:
      ValueError: if the codec cannot hold the output.
    """
    if output.kind not in codec.kinds:
        raise ValueError(f"codec '{codec.spec}' cannot hold kind '{output.kind}'")
    fingerprint = {**output.fingerprint, "codec": codec.spec, "extraction": VERSION}
    sha256 = codec_sha256(codec)
    if sha256 is not None:
        fingerprint["codec_sha256"] = sha256
    return Making(name, output, codec, fingerprint, set())


def refuse_foreign(shar_dir: Pathlike, fields: Iterable[str]) -> None:
    """Refuse to replace arrays that another program wrote under a field's name.

    Raises:
      ValueError: if a field has arrays and no folder of its own.
    """
    for field in fields:
        folder = field_dir(shar_dir, field)
        if folder.is_dir():
            continue
        if any(tar_path(shar_dir, field, s).is_file() for s in shard_ids(shar_dir)):
            raise ValueError(
                f"{shar_dir}: field '{field}' has arrays, but no description in "
                f"{folder}: another program wrote them, or the folder was not copied "
                "with them. Copy it, give another --field, or --overwrite to replace "
                "the arrays"
            )


def keep_whole(
    shar_dir: Pathlike,
    fields: Sequence[Making],
    found: Mapping[Place, dict[str, Any]],
    overwrite: bool,
) -> None:
    """Note the shards that need not be made.

    Args:
      found: fingerprints of the shards that are whole.
    Raises:
      ValueError: if there are shards of another teacher, unless ``overwrite``.
    """
    by_name = {f.name: f for f in fields}
    for (name, shard), fingerprint in found.items():
        field = by_name[name]
        if fingerprint == field.fingerprint:
            field.whole.add(shard)
        elif not overwrite:
            raise ValueError(
                f"{shar_dir}: field '{name}' was made with another fingerprint: "
                + "; ".join(fingerprint_differences(field.fingerprint, fingerprint))
                + ". Give another --field, or --overwrite to replace it"
            )


def clear(shar_dir: Pathlike, field: Making, todo: Sequence[str]) -> None:
    """Remove what says that shards about to be made are there, and what was left.

    Other processes may be at work on other shards of the field: theirs stay.  Arrays
    in the Shar folder stay until all new ones are there: lhotse may be reading it.
    """
    folder = field_dir(shar_dir, field.name)
    info_path(shar_dir, field.name).unlink(missing_ok=True)  # absent = unfinished
    remove_stale_temporaries(folder, f"{field.name}.json")
    remove_stale_temporaries(folder, f"{field.name}.codec.npz")
    for shard in todo:
        for path in (state_path, staged_path):
            file = path(shar_dir, field.name, shard)
            file.unlink(missing_ok=True)
            remove_stale_temporaries(folder, file.name)


def finish_field(shar_dir: Pathlike, field: Making, shards: Sequence[str]) -> int:
    """Put the field into the Shar folder and describe it, if all shards are whole.

    The shards of this process have been hashed or made; those of others are looked at
    without.  The description depends on the shards alone, not on who writes it.

    Args:
      shards: all of the folder.
    Returns:
      the number of shards that are not there yet.
    """
    folder = field_dir(shar_dir, field.name)
    files = {p.name for p in folder.glob(f"{field.name}.*.json")}
    names = [state_path(shar_dir, field.name, shard).name for shard in shards]
    if not files.issuperset(names):  # known without reading a single state
        return sum(name not in files for name in names)
    totals, strange = _Totals(), []
    for shard in shards:
        state = verified_state(shar_dir, field.name, shard, full=False)
        if state is not None and state.fingerprint != field.fingerprint:
            strange.append(shard)
        elif state is not None:
            totals.add(state)
    if strange:
        logging.warning(
            "%s: %d shards of field '%s' have another fingerprint, for example %s: a "
            "job with other options made them; make them again with --overwrite",
            shar_dir,
            len(strange),
            field.name,
            strange[:5],
        )
    if len(totals.shards) == len(shards):
        publish(shar_dir, field.name, shards)
        save(totals.describe(field), info_path(shar_dir, field.name))
    return len(shards) - len(totals.shards)


class _Totals:
    """Sums over the states of shards, which are too large to be kept."""

    def __init__(self) -> None:
        self.shards: list[dict[str, Any]] = []
        self._cuts = self._frames = 0
        self._sum = self._squares = np.zeros(())

    def add(self, state: ShardState) -> None:
        """Count one shard; the order of the shards matters to the last digit."""
        self._cuts += state.num_cuts
        self._frames += state.num_frames
        self._sum = self._sum + np.array(state.sum)
        self._squares = self._squares + np.array(state.sum_squares)
        self.shards.append(
            {
                "name": state.tar,
                "sha256": state.sha256,
                "num_cuts": state.num_cuts,
                "bytes": state.bytes,
                "cuts_sha256": state.cuts_sha256,
            }
        )

    def describe(self, field: Making) -> FieldInfo:
        """Return the description of the whole field."""
        mean = self._sum / self._frames
        std = np.sqrt(np.maximum(self._squares / self._frames - mean**2, 0.0))
        digest = hashlib.sha256("".join(s["sha256"] for s in self.shards).encode())
        return FieldInfo(
            name=field.name,
            kind=field.output.kind,
            dim=field.output.dim,
            frame_shift=field.output.frame_shift,
            codec=field.codec.spec,
            fingerprint=field.fingerprint,
            mean=mean.tolist(),
            std=std.tolist(),
            num_cuts=self._cuts,
            num_frames=self._frames,
            content_sha256=digest.hexdigest(),
            shards=self.shards,
            codec_sha256=codec_sha256(field.codec),
        )
