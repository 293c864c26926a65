"""Store the states of trained codecs, and choose the codec of each field.

``<field>.codec.npz`` holds a codec's state and its origin: the teacher's output that it
was trained on, the number of frames and the training options.  The origin decides
whether a repeated extraction reuses the codec or trains another one.
"""

import io
import json
import logging
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from icefall_kd.core.distributed import World
from icefall_kd.core.files import Pathlike, as_path, write_atomically
from icefall_kd.fields.builder import check_foreign_arrays, collect_outputs
from icefall_kd.fields.codecs import (
    Codec,
    codec_for_kind,
    find_codec,
    make_codec,
    train_codec,
    training_options,
)
from icefall_kd.fields.format import (
    FieldInfo,
    field_dir,
    fingerprint_differences,
    load_field_info,
    load_shard_state,
    shard_ids,
    state_path,
)
from icefall_kd.fields.planner import check_disk, measure_volume, predict_bytes
from icefall_kd.fields.run_teachers import sample_frames
from icefall_kd.teachers.base import Output, Teacher

CODEC_FRAMES = 20_000  # default number of frames to train a codec on

_SPEC, _ORIGIN = "spec", "origin"  # entries of the file in addition to the state


def codec_path(shar_dir: Pathlike, field: str) -> Path:
    """Return the path of the state of a field's codec."""
    return field_dir(shar_dir, field) / f"{field}.codec.npz"


def save_codec(
    codec: Codec,
    shar_dir: Pathlike,
    field: str,
    origin: Optional[Mapping[str, Any]] = None,
) -> None:
    """Write the state of a trained codec.

    Args:
      origin: JSON-serialisable description of its training, see :func:`read_origin`.
    """
    buffer = io.BytesIO()
    entries = {_SPEC: codec.spec, _ORIGIN: json.dumps(origin or {}, sort_keys=True)}
    arrays = {name: np.array(text) for name, text in entries.items()}
    np.savez(buffer, **arrays, **codec.state())
    with write_atomically(codec_path(shar_dir, field)) as temporary:
        temporary.write_bytes(buffer.getvalue())


def read_codec(shar_dir: Pathlike, field: str) -> Codec:
    """Read a trained codec.

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: if the file is damaged or not a codec's state.
    """
    return _read(shar_dir, field)[0]


def read_origin(shar_dir: Pathlike, field: str) -> dict[str, Any]:
    """Read the description of a codec's training.

    Returns:
      {"output": fingerprint of the teacher's output, "frames": requested number of
      frames, "options": training options}; empty if the codec was saved without origin.
    Raises:
      FileNotFoundError, ValueError: as :func:`read_codec`.
    """
    return _read(shar_dir, field)[1]


def _read(shar_dir: Pathlike, field: str) -> tuple[Codec, dict[str, Any]]:
    path = codec_path(shar_dir, field)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the field cannot be decoded. Copy the file from the "
            "Shar where the field was extracted, or extract it again with --overwrite"
        )
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            state: dict[str, np.ndarray] = {name: file[name] for name in file.files}
        origin = json.loads(str(state.pop(_ORIGIN)))
        return make_codec(str(state.pop(_SPEC)), state), origin
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as e:
        raise ValueError(
            f"{path}: damaged, or not a codec's state ({e}). Copy the file again, or "
            "extract the field again with --overwrite"
        ) from e


def load_codec(shar_dir: Pathlike, info: FieldInfo) -> Codec:
    """Return the codec that decodes a field.

    Raises:
      FileNotFoundError: if the codec is trained and its state is missing.
      ValueError: if the field was written with another state.
    """
    if not find_codec(info.codec)[0].trained:
        return make_codec(info.codec)
    codec = read_codec(shar_dir, info.name)
    if codec.spec != info.codec or codec.sha256() != info.codec_sha256:
        raise ValueError(
            f"{codec_path(shar_dir, info.name)} is not the codec that field "
            f"'{info.name}' was written with ({info.codec}). Copy both from the same "
            "Shar, or extract the field again with --overwrite"
        )
    return codec


def load_codecs(shar_dir: Pathlike, fields: Sequence[str]) -> dict[str, Codec]:
    """Return the codecs of several fields, by field; see :func:`load_codec`."""
    return {f: load_codec(shar_dir, load_field_info(shar_dir, f)) for f in fields}


def load_decoder(shar_dir: Pathlike, field: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that decodes the arrays of a field as Lhotse reads them.

    For programs that open a Shar folder with ``CutSet.from_shar``:

        decode = load_decoder("data/shar/train", "whisper_base")
        target = decode(cut.load_whisper_base())

    Its argument is a stored array, (T, ...) in the codec's dtype, or a slice of it in
    time.  It returns (T, W) float32; :class:`icefall_kd.teachers.Output` defines the
    values of each kind of field.

    Raises:
      FileNotFoundError, ValueError: as :func:`load_field_info`, :func:`load_codec`.
    """
    return load_codec(shar_dir, load_field_info(shar_dir, field)).decode


def get_codecs(
    shar_dir: Pathlike,
    teachers: Sequence[Teacher],
    codec: str,
    *,
    world: World,
    codec_dir: Optional[Pathlike] = None,
    codec_frames: int = CODEC_FRAMES,
    codec_options: Optional[Mapping[str, Any]] = None,
    may_train: bool = True,
    overwrite: bool = False,
) -> dict[str, Codec]:
    """Return the codec of each field; copy or train the missing ones.

    Rank 0 copies and trains, and writes the states to ``shar_dir``; the other processes
    wait.

    Args:
      teachers: teachers whose outputs are stored.
      codec: codec of the embeddings, for example "pq16".
      world: processes of the job.
      codec_dir: another Shar folder to copy trained codecs from.
      codec_frames: number of frames to train a missing codec on.
      codec_options: see :func:`icefall_kd.fields.codecs.training_options`.
      may_train: train missing codecs.  False raises an error instead, since independent
        jobs on one Shar must not train one codec each.
      overwrite: replace a codec with another origin.
    Raises:
      ValueError: if the stored codec is of another spec or teacher, an option is
        unknown, or another program wrote arrays of a field.
      FileNotFoundError: if a codec is missing and ``may_train`` is False, or finished
        shards need a missing codec.
      OSError: if the disk cannot hold the field, or rank 0 failed.
    """
    outputs = collect_outputs(teachers)
    if not overwrite:
        check_foreign_arrays(shar_dir, outputs)
    codecs: dict[str, Codec] = {}
    wanted: dict[str, _Wanted] = {}
    for name, output in outputs.items():
        spec = codec_for_kind(output.kind, codec)
        if find_codec(spec)[0].trained:
            origin = {
                "output": output.fingerprint,
                "frames": codec_frames,
                "options": training_options(spec, codec_options or {}),
            }
            # Comparable with a stored origin: JSON turns tuples into lists.
            wanted[name] = _Wanted(spec, output, json.loads(json.dumps(origin)))
        else:
            codecs[name] = make_codec(spec)
    if not wanted:
        return codecs
    if world.is_main:
        if codec_dir is not None and as_path(codec_dir) != as_path(shar_dir):
            _copy_codecs(codec_dir, shar_dir, wanted, overwrite)
        else:
            _train_missing(shar_dir, teachers, wanted, may_train, overwrite)
    try:
        world.barrier()
    except RuntimeError as e:  # torch raises it for a timeout and for a dead process
        raise OSError(
            "rank 0 did not finish training the codec. See its error message; without "
            f"one, the training took too long ({e})"
        ) from e
    for name in wanted:
        codecs[name], _ = _read_fitting(shar_dir, name, wanted[name])
    return codecs


class _Wanted(NamedTuple):
    """The trained codec that a field needs; for ``origin`` see :func:`read_origin`."""

    spec: str
    output: Output
    origin: dict[str, Any]


def _read_fitting(
    shar_dir: Pathlike, field: str, wanted: _Wanted
) -> tuple[Codec, dict[str, Any]]:
    """Return a stored codec and its origin.

    Raises:
      ValueError: if the spec or the teacher's output is not the wanted one.
    """
    codec, origin = _read(shar_dir, field)
    path = codec_path(shar_dir, field)
    if codec.spec != wanted.spec:
        raise ValueError(
            f"{path} holds codec '{codec.spec}', not '{wanted.spec}'; give --codec "
            f"{codec.spec}, another --field, or --overwrite"
        )
    output = wanted.origin["output"]
    differences = fingerprint_differences(output, origin.get("output", output))
    if differences:
        raise ValueError(
            f"{path} was trained on another teacher's output: {'; '.join(differences)}."
            " Delete it if no field here was written with it, or give another --field, "
            "or --overwrite"
        )
    return codec, origin


def _copy_codecs(
    source: Pathlike,
    shar_dir: Pathlike,
    wanted: Mapping[str, _Wanted],
    overwrite: bool,
) -> None:
    """Copy the codecs of another set to ``shar_dir``."""
    found = {name: _read_fitting(source, name, wanted[name]) for name in wanted}
    for name, (codec, origin) in found.items():
        path = codec_path(shar_dir, name)
        if overwrite or not path.is_file():
            save_codec(codec, shar_dir, name, origin)
        elif read_codec(shar_dir, name).sha256() != codec.sha256():
            raise ValueError(
                f"{path} differs from {codec_path(source, name)}: the sets of one "
                "training must share a codec; give --overwrite to replace the first"
            )


def _train_missing(
    shar_dir: Pathlike,
    teachers: Sequence[Teacher],
    wanted: Mapping[str, _Wanted],
    may_train: bool,
    overwrite: bool,
) -> None:
    """Train and save the missing codecs, all on the same sample of audio."""
    missing = [
        name
        for name in wanted
        if not _is_reusable(shar_dir, name, wanted[name], overwrite and may_train)
    ]
    if not missing:
        return
    if not may_train:
        raise FileNotFoundError(
            f"{codec_path(shar_dir, missing[0])} is missing: jobs with --shards must "
            "share one codec. Run the same command once before them with "
            "--train-codec-only instead of --shards"
        )
    for name in missing:
        _check_training(shar_dir, name, wanted[name], overwrite)
    needed = [t for t in teachers if set(missing) & set(t.outputs)]
    num_frames = max(wanted[name].origin["frames"] for name in missing)
    frames = sample_frames(shar_dir, needed, num_frames)
    for name in missing:
        spec, _, origin = wanted[name]
        logging.info(
            "training codec %s of %s on %d frames", spec, name, len(frames[name])
        )
        codec = train_codec(spec, frames[name], **origin["options"])
        save_codec(codec, shar_dir, name, origin)


def _is_reusable(
    shar_dir: Pathlike, field: str, wanted: _Wanted, overwrite: bool
) -> bool:
    """Return whether a stored codec can be used instead of training one.

    With ``overwrite``, its spec and its origin must be the wanted ones, as after a
    killed run with the same options.
    """
    if not overwrite:
        return codec_path(shar_dir, field).is_file()
    try:
        codec, origin = _read(shar_dir, field)
    except (FileNotFoundError, ValueError):
        return False
    return codec.spec == wanted.spec and origin == wanted.origin


def _check_training(
    shar_dir: Pathlike, field: str, wanted: _Wanted, overwrite: bool
) -> None:
    """Check that a codec can be trained and used, since its training takes minutes.

    Checks the disk too: if it were too full for new shards, the old shards would have
    lost their codec.

    Raises:
      ValueError: if the field has shards of another codec, unless ``overwrite``; if
        the codec cannot have this size, or its package is not installed.
      FileNotFoundError: if the field has shards of this codec, unless ``overwrite``.
      OSError: if the disk cannot hold the field.
    """
    cls, size = find_codec(wanted.spec)
    per_frame = cls(size, {}).bytes_per_frame(wanted.output.dim)
    cls.import_packages()
    for path in (state_path(shar_dir, field, shard) for shard in shard_ids(shar_dir)):
        if overwrite or not path.is_file():
            continue
        codec = load_shard_state(path).codec
        if codec != wanted.spec:
            raise ValueError(
                f"{shar_dir}: field '{field}' has codec '{codec}', not '{wanted.spec}';"
                f" give --codec {codec}, another --field, or --overwrite to replace it"
            )
        raise FileNotFoundError(
            f"{codec_path(shar_dir, field)} is missing, and finished shards need it: "
            "copy it back, or give --overwrite to extract them again"
        )
    volume = measure_volume([shar_dir])
    check_disk(shar_dir, {field: predict_bytes(volume, wanted.output, per_frame)})
