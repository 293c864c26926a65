"""Whether the codec that is there may serve a field, and whether to train one.

A codec's file says what it was trained on and how.  So a run that was killed goes on
with the codec that it trained, ``--overwrite`` or not, and what is left of a run over
another teacher's output does not serve this one's unnoticed.
"""

import json
from collections.abc import Mapping
from typing import Any

from icefall_kd.cache.codec_file import codec_path, read_codec, read_origin
from icefall_kd.cache.codecs import find_codec, training_options
from icefall_kd.cache.field import (
    fingerprint_differences,
    load_shard_state,
    shard_ids,
    state_path,
)
from icefall_kd.cache.plan import check_disk, predict_bytes, volume_of
from icefall_kd.io import Pathlike
from icefall_kd.teachers.protocol import Output


def origin_of(
    output: Output, spec: str, num_frames: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a codec is trained on and how, in the form that its file gives back.

    Args:
      num_frames: that are asked for.
      options:    of the training, see :func:`icefall_kd.cache.codecs.training_options`.
    Raises:
      ValueError: if there is no such option.
    """
    origin = {
        "output": output.fingerprint,
        "frames": num_frames,
        "options": training_options(spec, options),
    }
    return json.loads(json.dumps(origin))


def is_trained_so(
    shar_dir: Pathlike, field: str, spec: str, origin: Mapping[str, Any]
) -> bool:
    """Return whether the codec ``spec`` is there and was trained as ``origin`` says."""
    try:
        if read_origin(shar_dir, field) != origin:
            return False
        return read_codec(shar_dir, field).spec == spec
    except (FileNotFoundError, ValueError):  # absent or damaged
        return False


def check_origin(shar_dir: Pathlike, field: str, output: Output) -> None:
    """Refuse a codec that was trained on another output than ``output``.

    Raises:
      FileNotFoundError, ValueError: if it cannot be read, or is another output's.
    """
    wanted = json.loads(json.dumps(output.fingerprint))
    found = read_origin(shar_dir, field).get("output", wanted)
    differences = fingerprint_differences(wanted, found)
    if differences:
        raise ValueError(
            f"{codec_path(shar_dir, field)} was trained on another teacher's output: "
            + "; ".join(differences)
            + ". Delete it if no field here was written with it, or give another "
            "--field, or --overwrite"
        )


def check_training(
    shar_dir: Pathlike,
    field: str,
    spec: str,
    output: Output,
    overwrite: bool,
) -> None:
    """Refuse to train a codec that could not be used, before minutes are spent on it.

    The codec that is there stays what it is, too: what was written with it can still
    be read when the disk turns out to be too full for what shall replace it.

    Raises:
      ValueError: if the field has shards of another codec, unless ``overwrite``; if
        the codec cannot have this size, or its package is not installed.
      FileNotFoundError: if the field has shards of this codec, unless ``overwrite``.
      OSError: if the disk cannot hold the field.
    """
    cls, size = find_codec(spec)
    untrained = cls(size, {})
    cls.prepare()
    shards = shard_ids(shar_dir)
    for path in (state_path(shar_dir, field, shard) for shard in shards):
        if overwrite or not path.is_file():
            continue
        codec = load_shard_state(path).codec
        if codec != spec:
            raise ValueError(
                f"{shar_dir}: field '{field}' is of codec '{codec}', not '{spec}'; "
                "give that --codec, another --field, or --overwrite to replace it"
            )
        raise FileNotFoundError(
            f"{codec_path(shar_dir, field)} is missing, and there are shards that were "
            "written with it: copy it back, or give --overwrite to make them again"
        )
    per_frame = untrained.bytes_per_frame(output.dim)
    predicted = predict_bytes(volume_of([shar_dir]), output, per_frame)
    check_disk(shar_dir, {field: predicted})
