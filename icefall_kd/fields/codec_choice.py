"""Whether the codec that is there may serve a field, and whether to train one.

A codec's file says what it was trained on and how.  So a run that was killed goes on
with the codec that it trained, ``--overwrite`` or not, and what is left of a run over
another teacher's output does not serve this one's unnoticed.

Where the codecs of fields come from: they are there, another set's, or trained.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from icefall_kd.core.distributed import World
from icefall_kd.core.files import Pathlike, as_path
from icefall_kd.fields.codec_files import (
    codec_path,
    codec_sha256,
    read_codec,
    read_origin,
    save_codec,
)
from icefall_kd.fields.codecs import (
    Codec,
    find_codec,
    make_codec,
    train_codec,
    training_options,
)
from icefall_kd.fields.format import (
    fingerprint_differences,
    load_shard_state,
    shard_ids,
    state_path,
)
from icefall_kd.fields.planner import check_disk, predict_bytes, volume_of
from icefall_kd.fields.run_teachers import sample_frames
from icefall_kd.teachers.protocol import Output, Teacher


def origin_of(
    output: Output, spec: str, num_frames: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a codec is trained on and how, in the form that its file gives back.

    Args:
      num_frames: that are asked for.
      options:    of the training, see
        :func:`icefall_kd.fields.codecs.training_options`.
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


CODEC_FRAMES = 20_000  # that a codec is trained on


def spec_of(output: Output, codec: str) -> str:
    """Return the codec of an output when ``codec`` is that of the embeddings."""
    return codec if output.kind == "embedding" else "topk"


def obtain_codecs(
    shar_dir: Pathlike,
    teachers: Sequence[Teacher],
    outputs: Mapping[str, Output],
    codec: str,
    *,
    world: World,
    codec_dir: Optional[Pathlike] = None,
    num_frames: int = CODEC_FRAMES,
    options: Optional[Mapping[str, Any]] = None,
    may_train: bool = True,
    overwrite: bool = False,
) -> dict[str, Codec]:
    """Return the codec of each field; what is trained here is saved in ``shar_dir``.

    Of several processes the main one trains, and the others wait for it.

    Args:
      outputs:   of the teachers, by field.
      codec:     of the embeddings.
      codec_dir: another Shar folder whose trained codecs serve here too.
      num_frames: that a codec is trained on.
      options:   of its training, see :func:`icefall_kd.fields.codecs.training_options`.
      may_train: False refuses instead, since jobs that know nothing of each other
                 would each train one of their own.
      overwrite: train anew, or take another's, although one is there.
    Raises:
      ValueError: if the codec that is there is not the one that is wanted.
      FileNotFoundError: if one is missing and may not be trained.
      OSError: if the main process ended while others waited for it.
    """
    specs = {name: spec_of(output, codec) for name, output in outputs.items()}
    codecs = {n: make_codec(s) for n, s in specs.items() if not _is_trained(s)}
    trained = {n: s for n, s in specs.items() if _is_trained(s)}
    if not trained:
        return codecs
    shared = codec_dir is not None and as_path(codec_dir) != as_path(shar_dir)
    if world.is_main and shared:
        for name in trained:
            check_origin(codec_dir, name, outputs[name])
        _copy(codec_dir, shar_dir, trained, overwrite)
    elif world.is_main:
        origins = {
            name: origin_of(outputs[name], spec, num_frames, options or {})
            for name, spec in trained.items()
        }
        # A run that was killed goes on with the codec that it trained.
        renewed = {
            name
            for name, spec in trained.items()
            if overwrite
            and may_train
            and not is_trained_so(shar_dir, name, spec, origins[name])
        }
        absent = [
            name
            for name in trained
            if name in renewed or not codec_path(shar_dir, name).is_file()
        ]
        if absent and not may_train:
            raise FileNotFoundError(
                f"{codec_path(shar_dir, absent[0])} is missing: jobs with --shards "
                "must share one codec. Run the same command once before them with "
                "--train-codec-only in place of --shards"
            )
        for name in absent:
            check_training(shar_dir, name, trained[name], outputs[name], overwrite)
        _train(shar_dir, teachers, {n: trained[n] for n in absent}, origins)
    _wait_for_main(world)
    for name, spec in trained.items():
        codecs[name] = read_codec(shar_dir, name)
        _check_spec(codecs[name], shar_dir, name, spec)
        check_origin(shar_dir, name, outputs[name])
    return codecs


def _is_trained(spec: str) -> bool:
    return find_codec(spec)[0].trained


def _check_spec(codec: Codec, shar_dir: Pathlike, field: str, spec: str) -> None:
    if codec.spec != spec:
        raise ValueError(
            f"{codec_path(shar_dir, field)} is of codec '{codec.spec}', not '{spec}'; "
            "give that --codec, another --field, or --overwrite"
        )


def _copy(
    source: Pathlike, shar_dir: Pathlike, specs: Mapping[str, str], overwrite: bool
) -> None:
    """Put another set's codecs here."""
    for name, spec in specs.items():
        codec = read_codec(source, name)
        _check_spec(codec, source, name, spec)
        path = codec_path(shar_dir, name)
        if overwrite or not path.is_file():
            save_codec(codec, shar_dir, name, read_origin(source, name))
        elif codec_sha256(read_codec(shar_dir, name)) != codec_sha256(codec):
            raise ValueError(
                f"{path} is not the codec of {codec_path(source, name)}: sets that are "
                "trained on together must share theirs; give --overwrite to take that"
            )


def _train(
    shar_dir: Pathlike,
    teachers: Sequence[Teacher],
    specs: Mapping[str, str],
    origins: Mapping[str, Mapping[str, Any]],
) -> None:
    """Train and save codecs, all on the same sample of audio.

    Args:
      origins: what each is trained on and how, see ``codec_origin.origin_of``.
    """
    needed: list[Teacher] = [t for t in teachers if set(specs) & set(t.outputs)]
    if not needed:
        return
    frames = sample_frames(shar_dir, needed, max(origins[n]["frames"] for n in specs))
    for name, spec in specs.items():
        logging.info(
            "training codec %s of %s on %d frames", spec, name, len(frames[name])
        )
        codec = train_codec(spec, frames[name], **origins[name]["options"])
        save_codec(codec, shar_dir, name, origins[name])


def _wait_for_main(world: World) -> None:
    try:
        world.barrier()
    except RuntimeError as e:  # how torch says both "gone" and "too late"
        raise OSError(
            "the process of rank 0 did not finish training the codec: its own message "
            f"says why, or it took too long ({e})"
        ) from e
