"""Where the terms' targets come from: stored fields, or teachers that speak at once."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from icefall_kd.core.config import config_differences
from icefall_kd.core.distributed import pick_device
from icefall_kd.dataset.fields import LiveFields
from icefall_kd.fields.codecs import Codec
from icefall_kd.fields.codecs.storage import load_codec
from icefall_kd.fields.format import (
    FieldInfo,
    fingerprint_differences,
    info_path,
    load_field_info,
)
from icefall_kd.fields.run_teachers import sample_frames
from icefall_kd.teachers import Output, Teacher, build_teachers
from icefall_kd.training.config import TrainConfig

STATISTICS_FRAMES = 20_000  # of each field that a teacher's statistics are taken from


def read_fields(
    train_dirs: Sequence[Path],
    dev_dirs: Sequence[Path],
    fields: Sequence[str],
    missing: str = "error",
) -> tuple[dict[str, FieldInfo], dict[str, Codec]]:
    """Return each field's description and codec, of the first training set's.

    Args:
      missing: "skip" lets sets lack a field, but not all training sets.
    Raises:
      FileNotFoundError: if a set lacks a field, or the state of a codec is missing.
      ValueError: if two sets hold a field of different teachers.
    """
    infos, codecs = {}, {}
    for field in fields:
        first, *others = _holders(train_dirs, field, missing) or train_dirs
        infos[field] = load_field_info(first, field)
        for other in [*others, *_holders(dev_dirs, field, missing)]:
            info = load_field_info(other, field)
            differences = config_differences(info.fingerprint, infos[field].fingerprint)
            if differences:
                raise ValueError(_told(field, first, other, differences))
        codecs[field] = load_codec(first, infos[field])
    return infos, codecs


def _told(field: str, first: Path, other: Path, differences: Sequence[str]) -> str:
    """Return what to say where one field is not the same in two sets."""
    if all(d.startswith("codec_sha256:") for d in differences):
        return (
            f"field '{field}' of {other} and of {first} have codecs that were trained "
            f"apart; make one again by 'python -m icefall_kd.bin.extract --shar-dir "
            f"{other} --codec-from {first} --overwrite' with the other options that "
            "made it"
        )
    return (
        f"field '{field}' of {other} is not from the teacher of {first}: "
        + "; ".join(differences)
    )


def _holders(dirs: Sequence[Path], field: str, missing: str) -> list[Path]:
    """Return the sets that must hold a field, or that happen to."""
    return [d for d in dirs if missing == "error" or info_path(d, field).is_file()]


def build_live(config: TrainConfig, fields: Sequence[str]) -> Optional[LiveFields]:
    """Return the teachers that say ``fields`` in this process; None if there are none.

    Raises:
      ValueError, FileNotFoundError: if a teacher cannot be built, says something else
        than ``data.expect`` has, or nobody says a field.
      ImportError: if a package of a teacher is missing.
    """
    if not fields:
        return None
    device = pick_device(config.device, int(os.environ.get("LOCAL_RANK", "0")))
    common = {
        "device": str(device),
        "num_threads": config.num_threads or torch.get_num_threads(),
    }
    described = config.data.teachers
    teachers = build_teachers({n: {**common, **d} for n, d in described.items()})
    outputs = {n: o for t in teachers for n, o in t.outputs.items()}
    unsaid = [f for f in fields if f not in outputs]
    if unsaid:
        raise ValueError(
            f"data.cache is none, but no teacher of data.teachers says {unsaid}; they "
            f"say {sorted(outputs) or 'nothing'}"
        )
    for field in fields:
        differences = fingerprint_differences(
            config.data.expect.get(field, {}), outputs[field].fingerprint, True
        )
        if differences:
            raise ValueError(
                f"data.teachers: '{field}' is not what data.expect has: "
                + "; ".join(differences)
            )
    return LiveFields([t for t in teachers if set(fields) & set(t.outputs)], fields)


def live_infos(live: LiveFields, dirs: Sequence[Path]) -> dict[str, FieldInfo]:
    """Describe what the teachers say, with the statistics that normalise it.

    They are those of a stored field where a set has one of the same fingerprint,
    else those of a sample of frames of the first set.
    """
    outputs = {n: o for t in live.teachers for n, o in t.outputs.items()}
    infos: dict[str, FieldInfo] = {}
    for field in live.names:
        stored = _same_field(field, outputs[field], dirs)
        if stored is not None:
            infos[field] = stored
    unknown = [f for f in live.names if f not in infos]
    teachers = [t for t in live.teachers if set(unknown) & set(t.outputs)]
    if teachers:
        infos.update(_sampled_infos(dirs[0], teachers, unknown))
    return infos


def _same_field(
    field: str, output: Output, dirs: Sequence[Path]
) -> Optional[FieldInfo]:
    wanted = json.loads(json.dumps(output.fingerprint))  # as the JSON has it
    for folder in dirs:
        if not info_path(folder, field).is_file():
            continue
        info = load_field_info(folder, field)
        if not fingerprint_differences(wanted, info.fingerprint, only_wanted=True):
            logging.info("statistics of '%s' are those of %s", field, folder)
            return info
    return None


def _sampled_infos(
    folder: Path, teachers: Sequence[Teacher], fields: Sequence[str]
) -> Mapping[str, FieldInfo]:
    outputs = {n: o for t in teachers for n, o in t.outputs.items()}
    samples = sample_frames(folder, teachers, STATISTICS_FRAMES)
    infos = {}
    for field in fields:
        frames = samples[field].astype(np.float64)
        logging.info(
            "statistics of '%s' are those of %d frames of %s",
            field,
            len(frames),
            folder,
        )
        infos[field] = _info(field, outputs[field], frames)
    return infos


def _info(field: str, output: Output, frames: Any) -> FieldInfo:
    return FieldInfo(
        name=field,
        kind=output.kind,
        dim=output.dim,
        frame_shift=output.frame_shift,
        codec="none",
        fingerprint=output.fingerprint,
        mean=frames.mean(axis=0).tolist(),
        std=frames.std(axis=0).tolist(),
        num_cuts=0,
        num_frames=len(frames),
        content_sha256="",
        shards=[],
    )
