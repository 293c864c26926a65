"""The fields of a batch: what was stored of its cuts, or what teachers say at once.

Either way a field of a batch is ``{"x": (N, T, W) float32, zero-padded, "lens": (N,)
int64, "frame_shift": s}``.  An utterance without a target has the length 0.

What was stored is collated as it is, which is small: so it goes to a device, and it is
decoded there.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
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
from icefall_kd.fields.codecs import Codec
from icefall_kd.fields.frames import Frames, prefetch
from icefall_kd.fields.reader import find_stored, frames_of, read_stored
from icefall_kd.teachers.protocol import Teacher

_SECONDS = 60.0  # of padded audio in one call of a teacher, as in the extraction


def collate_field(cuts: CutSet, name: str, missing: str = "error") -> dict[str, Any]:
    """Return the field ``name`` of a batch of cuts as it is stored.

    Args:
      missing: "error", or "skip" to let cuts have no target.
    Returns:
      "stored": (N, T, B) of the codec's type, padded with anything, (N, 0, 0) where
      no cut has a target; "lens": N integers; "frame_shift": s.
    Raises:
      ValueError: if a cut has no target and must have one, or the cuts' frame shifts
        or frames differ in kind.
    """
    found: list[Optional[Frames]] = []
    shifts = set()
    for cut in cuts:
        if missing == "skip" and not cut.has_custom(name):
            found.append(None)
            continue
        found.append(find_stored(cut, name))
        shifts.add(cut.custom[name].frame_shift)
    if len(shifts) > 1:
        raise ValueError(f"field '{name}' has several frame shifts: {sorted(shifts)}")
    kinds = {(f.dtype, f.shape[1:]) for f in found if f is not None}
    if len(kinds) > 1:
        raise ValueError(f"field '{name}' has frames of several kinds: {kinds}")
    dtype, shape = kinds.pop() if kinds else (np.dtype(np.float32), (0,))
    lens = [0 if f is None else f.shape[0] for f in found]
    stored = np.empty((len(lens), max(lens), *shape), dtype)
    for cut, frames, row in zip(cuts, found, stored):
        if frames is not None:
            read_stored(cut, name, frames, row[: frames.shape[0]])
    return {
        "stored": torch.from_numpy(stored),
        "lens": lens,
        "frame_shift": shifts.pop() if shifts else 0.0,
    }


def prefetch_fields(cuts: CutSet, names: Collection[str]) -> None:
    """Let the system read ahead what :func:`collate_field` will ask for."""
    for cut in cuts:
        for name in names:
            if isinstance(cut, DataCut) and cut.has_custom(name):
                prefetch(cut.custom[name].array)


def without_fields(cuts: CutSet, names: Collection[str]) -> CutSet:
    """Return cuts that carry none of the fields ``names``."""
    return cuts.map(partial(_without, names=frozenset(names))) if names else cuts


def _without(cut: Cut, names: Collection[str]) -> Cut:
    if not isinstance(cut, DataCut) or not cut.custom:
        return cut
    custom = {k: v for k, v in cut.custom.items() if k not in names}
    return fastcopy(cut, custom=custom)


def decode_field(
    field: Mapping[str, Any], codec: Codec, device: Union[str, torch.device] = "cpu"
) -> dict[str, Any]:
    """Return a field of a batch, on ``device``, of what :func:`collate_field` said."""
    x, lens = field["stored"].to(device), field["lens"]
    if x.numel():
        x = codec.decode_tensor(x)
        for row, length in zip(x, lens):  # a mask would pass over all of it
            if length < len(row):
                row[length:] = 0.0
    lens = torch.tensor(lens, device=device)
    return {"x": x, "lens": lens, "frame_shift": field["frame_shift"]}


def decode_fields(
    batch: Mapping[str, Any],
    codecs: Mapping[str, Codec],
    device: Union[str, torch.device] = "cpu",
) -> dict[str, Any]:
    """Return a batch with its stored fields decoded, on ``device``."""
    fields = {
        name: decode_field(field, codecs[name], device)
        for name, field in batch["fields"].items()
    }
    return {**batch, "fields": fields}


class LiveFields:
    """Lets teachers speak about each batch, where nothing was stored.

    What they say comes in the form, and cut to the length, of a stored field.

    Attributes:
      teachers: that say the fields; each of them hears every batch.
      names: of the fields.
    """

    def __init__(self, teachers: Sequence[Teacher], names: Sequence[str]) -> None:
        self.teachers = list(teachers)
        self.names = tuple(names)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch with "fields" in place of "waves" and "wave_lens"."""
        batch = dict(batch)
        waves, lens = batch.pop("waves"), batch.pop("wave_lens")
        durations = [cut.duration for cut in batch["cuts"]]
        batch["fields"] = {}
        for teacher in self.teachers:
            said: dict[str, list[Tensor]] = {}
            needs_text = getattr(teacher, "needs_text", False)
            for first, last in _calls(lens):
                texts = (batch["text"][first:last],) if needs_text else ()
                width = int(lens[first:last].max())
                with torch.no_grad():
                    outputs = teacher.forward(
                        waves[first:last, :width], lens[first:last], *texts
                    )
                for name in (n for n in self.names if n in outputs):
                    x, valid = outputs[name].x, outputs[name].lens.tolist()
                    shift = teacher.outputs[name].frame_shift
                    said.setdefault(name, []).extend(
                        row[: min(n, frames_of(duration, shift))]
                        for row, n, duration in zip(x, valid, durations[first:last])
                    )
            for name, frames in said.items():
                shift = teacher.outputs[name].frame_shift
                batch["fields"][name] = {
                    "x": pad_sequence(frames, batch_first=True).float(),
                    "lens": torch.tensor([len(f) for f in frames]),
                    "frame_shift": shift,
                }
        return batch


def _calls(lens: Tensor) -> Iterator[tuple[int, int]]:
    """Yield the utterances of each call: first, and behind the last."""
    first, count = 0, len(lens)
    while first < count:
        longest = int(lens[first:].max())
        last = first + max(1, int(_SECONDS * SAMPLE_RATE / longest))
        yield first, min(last, count)
        first = last
