"""Where the codecs of fields come from: they are there, another set's, or trained."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from icefall_kd.cache.codec_file import (
    codec_path,
    codec_sha256,
    read_codec,
    read_origin,
    save_codec,
)
from icefall_kd.cache.codec_origin import (
    check_origin,
    check_training,
    is_trained_so,
    origin_of,
)
from icefall_kd.cache.codecs import Codec, find_codec, make_codec, train_codec
from icefall_kd.cache.sample import sample_frames
from icefall_kd.io import Pathlike, as_path
from icefall_kd.teachers.protocol import Output, Teacher
from icefall_kd.training.distributed import World

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
      options:   of its training, see :func:`icefall_kd.cache.codecs.training_options`.
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
