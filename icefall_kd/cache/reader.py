"""Opens Shar folders with fields, lazily, after proving that the fields join."""

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from lhotse import CutSet
from lhotse.cut import Cut

from icefall_kd.cache.codecs import Codec
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
from icefall_kd.cache.join import compare_keys, describe, read_keys
from icefall_kd.cache.shards import Shard, ShardCuts
from icefall_kd.io import Pathlike, sha256_file

Expectation = Mapping[str, Mapping[str, Any]]


def open_shar(
    shar_dir: Pathlike,
    fields: Sequence[str] = (),
    expect: Optional[Expectation] = None,
) -> CutSet:
    """Return the cuts of a Shar folder with audio and the fields named.

    Everything that can be wrong with a field is found here, before the first batch,
    and told in one message.

    Args:
      shar_dir: holds cuts.*.jsonl.gz, recording.*.tar, <field>.*.tar, <field>.json.
      fields:   read these and no others.
      expect:   field -> the part of its fingerprint that it must have, for example
                {"whisper_base": {"layer": "last"}}.
    Returns:
      a lazy CutSet; ``load_field(cut, name)`` gives a field's array.
    Raises:
      FileNotFoundError: if the folder, a field or a shard is missing.
      ValueError: if a field does not join the cuts, or its fingerprint differs.
    """
    return CutSet(ShardCuts(shar_shards(shar_dir, fields, expect)))


def shar_shards(
    shar_dir: Pathlike,
    fields: Sequence[str] = (),
    expect: Optional[Expectation] = None,
) -> Tuple[Shard, ...]:
    """Return the shards of a Shar folder in order; else as :func:`open_shar`."""
    ids = shard_ids(shar_dir)
    for field in fields:
        check_field(shar_dir, field, (expect or {}).get(field))
    shards = tuple(
        Shard(
            cuts_path(shar_dir, s),
            {f: tar_path(shar_dir, f, s) for f in ("recording", *fields)},
        )
        for s in ids
    )
    audio = [shard.tars["recording"] for shard in shards]
    absent = [str(path) for path in audio if not path.is_file()]
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} shards of audio are missing, for example {absent[:5]}"
        )
    return shards


def load_field(cut: Cut, field: str, codec: Codec) -> np.ndarray:
    """Return the field's frames under a cut, (T, W) float32.

    A truncated cut gets the frames of its own time span.

    Args:
      codec: of the field, see :func:`icefall_kd.cache.codec_file.load_codec`.
    Raises:
      ValueError: if the cut carries no such field.
    """
    if not cut.has_custom(field):
        raise ValueError(
            f"cut '{cut.id}' carries no field '{field}'; name it in open_shar(...)"
        )
    return codec.decode(cut.load_custom(field))


def check_field(
    shar_dir: Pathlike, field: str, expected: Optional[Mapping[str, Any]] = None
) -> FieldInfo:
    """Prove that a field belongs to the cuts of its folder.

    While the file of the cuts is the one that the field was made from, its checksum
    proves it; otherwise each cut is compared by recording, start, duration and speed.

    Returns:
      the field's description.
    Raises:
      FileNotFoundError: if the field is missing or unfinished.
      ValueError: with counts and five examples of each problem.
    """
    info = load_field_info(shar_dir, field)
    differences = fingerprint_differences(
        dict(expected or {}), info.fingerprint, only_wanted=True
    )
    if differences:
        raise ValueError(
            f"{shar_dir}: field '{field}' is not what the configuration expects: "
            + "; ".join(differences)
            + ". Correct the configuration, or extract the field again with --overwrite"
        )
    known = {s["name"]: s for s in info.shards}
    problems: Dict[str, List[str]] = {}
    for shard in shard_ids(shar_dir):
        tar = tar_path(shar_dir, field, shard)
        entry = known.pop(tar.name, None)
        for kind, cases in _check_shard(shar_dir, field, shard, entry).items():
            problems.setdefault(kind, []).extend(cases)
    if known:
        problems["shards without cuts"] = sorted(known)
    if problems:
        raise ValueError(
            f"{shar_dir}: field '{field}' does not join its cuts:\n"
            f"{describe(problems)}\nRemedy: 'python -m icefall_kd.bin.extract "
            f"--shar-dir {shar_dir} --field {field} ...' makes the shards concerned "
            "again"
        )
    return info


def _check_shard(
    shar_dir: Pathlike, field: str, shard: str, entry: Optional[Dict[str, Any]]
) -> Dict[str, List[str]]:
    tar = tar_path(shar_dir, field, shard)
    if entry is None or not tar.is_file():
        return {"missing shards": [tar.name]}
    if tar.stat().st_size != entry["bytes"]:
        return {"damaged shards": [tar.name]}
    cuts = cuts_path(shar_dir, shard)
    if sha256_file(cuts) == entry["cuts_sha256"]:
        return {}
    path = state_path(shar_dir, field, shard)
    if not path.is_file():
        return {"shards without keys": [path.name]}
    return compare_keys(read_keys(cuts), load_shard_state(path).keys)
