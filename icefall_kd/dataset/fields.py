"""Fields of a batch: read from Shar, or computed by live teachers.

In both cases a field of a batch is

    {
        "x":           (N, T, W) float32, zero-padded,
        "lens":        (N,) int64, valid frames; 0 for an utterance without a target,
        "frame_shift": float, seconds,
    }

Stored fields are collated in their compressed form and decompressed on the training
device, so that fewer bytes are copied.
"""

import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from lhotse.utils import fastcopy
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.distributed import pick_device
from icefall_kd.fields.codecs import Codec
from icefall_kd.fields.codecs.storage import load_codec
from icefall_kd.fields.format import (
    FieldInfo,
    fingerprint_differences,
    info_path,
    load_field_info,
)
from icefall_kd.fields.frames import Frames, prefetch_frames
from icefall_kd.fields.reader import count_frames, find_frames, read_frames
from icefall_kd.fields.run_teachers import sample_frames
from icefall_kd.teachers import Output, Teacher, build_teachers
from icefall_kd.teachers.base import run_teacher

_SECONDS = 60.0  # maximum padded audio of a teacher's batch, as in the extraction
_STATISTICS_FRAMES = 20_000  # size of the sample for the statistics of a live field


def open_fields(
    train_dirs: Sequence[Path],
    dev_dirs: Sequence[Path],
    fields: Sequence[str],
    missing: str = "error",
) -> tuple[dict[str, FieldInfo], dict[str, Codec]]:
    """Return the description and the codec of each field.

    They come from the first training set that has the field.

    Args:
      missing: "error", or "skip" to allow sets without a field, as long as one training
        set has it.
    Raises:
      FileNotFoundError: if a set lacks the field, or the state of a codec is missing.
      ValueError: if two sets have a field from different teachers or codecs.
    """
    infos, codecs = {}, {}
    for field in fields:
        first, *others = _with_field(train_dirs, field, missing) or train_dirs
        infos[field] = load_field_info(first, field)
        for other in [*others, *_with_field(dev_dirs, field, missing)]:
            _check_same_source(field, first, infos[field], other)
        codecs[field] = load_codec(first, infos[field])
    return infos, codecs


def _with_field(dirs: Sequence[Path], field: str, missing: str) -> list[Path]:
    return [d for d in dirs if missing == "error" or info_path(d, field).is_file()]


def _check_same_source(field: str, first: Path, info: FieldInfo, other: Path) -> None:
    found = load_field_info(other, field).fingerprint
    differences = fingerprint_differences(info.fingerprint, found)
    if not differences:
        return
    if all(d.startswith("codec_sha256 ") for d in differences):
        raise ValueError(
            f"field '{field}': the codecs of {first} and {other} were trained "
            "separately. Extract it again with the codec of the first: python -m "
            f"icefall_kd.bin.extract --shar-dir {other} --codec-from {first} "
            "--overwrite ..."
        )
    raise ValueError(
        f"field '{field}': {other} and {first} are from different teachers: "
        + "; ".join(differences)
        + ". Extract both sets with the same options"
    )


def collate_field(cuts: CutSet, name: str, missing: str = "error") -> dict[str, Any]:
    """Return a field of a batch in its compressed form.

    Args:
      missing: "error", or "skip" to allow cuts without a target.
    Returns:
      {
          "compressed":  (N, T, ...) of the codec's dtype, arbitrary padding; (N, 0, 0)
                         if no cut has a target,
          "lens":        list of N ints, valid frames,
          "frame_shift": float, seconds; 0 if no cut has a target,
      }
    Raises:
      ValueError: if a cut has no target and ``missing`` is "error", or frame shift,
        shape or dtype differ between the cuts.
    """
    found: list[Optional[Frames]] = []
    shifts = set()
    for cut in cuts:
        if missing == "skip" and not cut.has_custom(name):
            found.append(None)
            continue
        found.append(find_frames(cut, name))
        shifts.add(cut.custom[name].frame_shift)
    if len(shifts) > 1:
        raise ValueError(
            f"field '{name}': the sets have different frame shifts, {sorted(shifts)}. "
            "Extract it with one teacher for all sets"
        )
    kinds = {(f.dtype, f.shape[1:]) for f in found if f is not None}
    if len(kinds) > 1:
        raise ValueError(
            f"field '{name}': the sets have different dtypes or shapes of a frame, "
            f"{kinds}. Extract it with one codec for all sets"
        )
    dtype, shape = kinds.pop() if kinds else (np.dtype(np.float32), (0,))
    lens = [0 if f is None else f.shape[0] for f in found]
    out = np.empty((len(lens), max(lens), *shape), dtype)
    for cut, frames, row in zip(cuts, found, out):
        if frames is not None:
            read_frames(cut, name, frames, row[: frames.shape[0]])
    return {
        "compressed": torch.from_numpy(out),
        "lens": lens,
        "frame_shift": shifts.pop() if shifts else 0.0,
    }


def decompress_fields(
    fields: Mapping[str, Mapping[str, Any]],
    codecs: Mapping[str, Codec],
    device: Union[str, torch.device] = "cpu",
) -> dict[str, dict[str, Any]]:
    """Return the decompressed fields of a batch, on ``device``.

    Args:
      fields: name -> field, see :func:`collate_field`.
      codecs: name -> codec.
    """
    decompressed = {}
    for name, field in fields.items():
        x, lens = field["compressed"].to(device), field["lens"]
        if x.numel():
            x = codecs[name].decode_tensor(x)
            for row, length in zip(x, lens):  # faster than a mask over all frames
                if length < len(row):
                    row[length:] = 0.0
        decompressed[name] = {
            "x": x,
            "lens": torch.tensor(lens, device=device),
            "frame_shift": field["frame_shift"],
        }
    return decompressed


def prefetch_fields(cuts: CutSet, names: Collection[str]) -> None:
    """Let the operating system read the frames of the cuts in advance."""
    for cut in cuts:
        for name in names:
            if isinstance(cut, DataCut) and cut.has_custom(name):
                prefetch_frames(cut.custom[name].array)


def drop_fields(cuts: CutSet, names: Collection[str]) -> CutSet:
    """Return the cuts without the fields ``names``."""

    def drop(cut: Cut) -> Cut:
        if not isinstance(cut, DataCut) or not cut.custom:
            return cut
        custom = {k: v for k, v in cut.custom.items() if k not in names}
        return fastcopy(cut, custom=custom)

    return CutSet.from_cuts(map(drop, cuts)) if names else cuts


class LiveTeachers:
    """Teachers that compute the fields of each batch during training.

    The fields have the same form and length as stored ones.

    Attributes:
      teachers: teachers that run on every batch.
      names: names of the fields that a batch gets.
    """

    def __init__(self, teachers: Sequence[Teacher], names: Sequence[str]) -> None:
        self.teachers = list(teachers)
        self.names = tuple(names)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch with "fields" instead of "waves" and "wave_lens"."""
        batch = dict(batch)
        waves, lens = batch.pop("waves"), batch.pop("wave_lens")
        durations = [cut.duration for cut in batch["cuts"]]
        ids = [cut.id for cut in batch["cuts"]]
        batch["fields"] = {}
        for teacher in self.teachers:
            rows: dict[str, list[Tensor]] = {}
            for first, last in _split_batch(lens):
                part = slice(first, last)
                width = int(lens[part].max())
                with torch.no_grad():
                    outputs = run_teacher(
                        teacher,
                        waves[part, :width],
                        lens[part],
                        batch["text"][part],
                        ids[part],
                    )
                for name in (n for n in self.names if n in outputs):
                    x, valid = outputs[name].x, outputs[name].lens.tolist()
                    shift = teacher.outputs[name].frame_shift
                    rows.setdefault(name, []).extend(
                        row[: min(n, count_frames(duration, shift))]
                        for row, n, duration in zip(x, valid, durations[part])
                    )
            for name, frames in rows.items():
                batch["fields"][name] = {
                    "x": pad_sequence(frames, batch_first=True).float(),
                    "lens": torch.tensor([len(f) for f in frames]),
                    "frame_shift": teacher.outputs[name].frame_shift,
                }
        return batch

    def describe_fields(self, dirs: Sequence[Path]) -> dict[str, FieldInfo]:
        """Return a description of each field, with the statistics to normalise it.

        If a set has a stored field with the same fingerprint, its statistics are used;
        otherwise, the statistics of a sample of frames from the first set.

        Args:
          dirs: Shar folders of the training sets.
        """
        outputs = _outputs(self.teachers)
        infos = {n: _find_stored_info(n, outputs[n], dirs) for n in self.names}
        unknown = [name for name, info in infos.items() if info is None]
        teachers = [t for t in self.teachers if set(unknown) & set(t.outputs)]
        if teachers:
            samples = sample_frames(dirs[0], teachers, _STATISTICS_FRAMES)
            for name in unknown:
                infos[name] = _describe_sample(name, outputs[name], samples[name])
                logging.info(
                    "statistics of '%s' are those of %d frames of %s",
                    name,
                    len(samples[name]),
                    dirs[0],
                )
        return infos


def build_live_teachers(
    descriptions: Mapping[str, Mapping[str, Any]],
    fields: Sequence[str],
    *,
    expect: Mapping[str, Mapping[str, Any]],
    device: str,
    num_threads: int,
) -> LiveTeachers:
    """Return the teachers that compute ``fields`` in this process.

    Args:
      descriptions: field -> options of its teacher, as in the YAML file of bin.extract.
      fields: names of the fields to compute.
      expect: field -> keys and values that its fingerprint must have.
      device: "auto", "cpu" or "cuda".
      num_threads: number of threads of a teacher on the CPU; 0 for that of PyTorch.
    Raises:
      ValueError, FileNotFoundError: if a teacher cannot be built, its fingerprint
        differs from ``expect``, or no teacher computes a field.
      ImportError: if a package of a teacher is missing.
    """
    common = {
        "device": str(pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))),
        "num_threads": num_threads or torch.get_num_threads(),
    }
    teachers = build_teachers({n: {**common, **d} for n, d in descriptions.items()})
    outputs = _outputs(teachers)
    missing = [f for f in fields if f not in outputs]
    if missing:
        raise ValueError(
            f"data.cache is none, but no teacher of data.teachers computes {missing}. "
            f"Its teachers compute: {sorted(outputs) or 'nothing'}. Add a teacher, or "
            "set data.cache to shar"
        )
    for field in fields:
        differences = fingerprint_differences(
            expect.get(field, {}), outputs[field].fingerprint, only_wanted=True
        )
        if differences:
            raise ValueError(
                f"data.teachers: field '{field}' differs from data.expect: "
                + "; ".join(differences)
                + ". Correct one of the two options"
            )
    return LiveTeachers([t for t in teachers if set(fields) & set(t.outputs)], fields)


def _outputs(teachers: Sequence[Teacher]) -> dict[str, Output]:
    return {name: o for t in teachers for name, o in t.outputs.items()}


def _find_stored_info(
    field: str, output: Output, dirs: Sequence[Path]
) -> Optional[FieldInfo]:
    wanted = json.loads(json.dumps(output.fingerprint))  # tuples become lists
    for folder in dirs:
        if not info_path(folder, field).is_file():
            continue
        info = load_field_info(folder, field)
        if not fingerprint_differences(wanted, info.fingerprint, only_wanted=True):
            logging.info("statistics of '%s' are those of %s", field, folder)
            return info
    return None


def _describe_sample(field: str, output: Output, frames: np.ndarray) -> FieldInfo:
    frames = frames.astype(np.float64)
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


def _split_batch(lens: Tensor) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) of the utterances in each batch of a teacher."""
    first, count = 0, len(lens)
    while first < count:
        longest = int(lens[first:].max())
        last = first + max(1, int(_SECONDS * SAMPLE_RATE / longest))
        yield first, min(last, count)
        first = last
