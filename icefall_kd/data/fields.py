"""The fields of a batch: what was stored of its cuts, or what teachers say at once.

Either way a field of a batch is ``{"x": (N, T, W) float32, zero-padded, "lens": (N,)
int64, "frame_shift": s}``.  An utterance without a target has the length 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable, Optional, Union

import numpy as np
import torch
from lhotse import CutSet
from torch import Tensor

from icefall_kd import SAMPLE_RATE
from icefall_kd.cache.codecs import Codec
from icefall_kd.cache.reader import frames_of, load_stored
from icefall_kd.teachers.protocol import Teacher

Frames = Union[np.ndarray, Tensor]
_SECONDS = 60.0  # of padded audio in one call of a teacher, as in the extraction


def pad_field(
    frames: Sequence[Optional[Frames]],
    frame_shift: float,
    decode: Callable[[Frames], Tensor],
) -> dict[str, Any]:
    """Return a field of a batch.

    Args:
      frames: of each utterance, time first; None for one without a target.  Where
        none has one, x is (N, 0, 0).
      frame_shift: s.
      decode: frames -> (T, W) float32.
    """
    lens = [0 if f is None else len(f) for f in frames]
    x = torch.zeros(len(frames), 0, 0)
    for row, some in enumerate(frames):
        if some is None:
            continue
        decoded = decode(some)
        if not x.numel():
            x = decoded.new_empty(len(frames), max(lens), decoded.size(1))
        # At once, while the decoded frames are in the processor's cache.
        x[row, : lens[row]] = decoded
    for row, length in enumerate(lens):
        x[row, length:] = 0.0
    return {"x": x, "lens": torch.tensor(lens), "frame_shift": frame_shift}


def collate_field(
    cuts: CutSet, name: str, codec: Codec, missing: str = "error"
) -> dict[str, Any]:
    """Return the stored field ``name`` of a batch of cuts.

    Args:
      missing: "error", or "skip" to let cuts have no target.
    Raises:
      ValueError: if a cut has no target and must have one, or the cuts' frame shifts
        differ.
    """
    frames: list[Optional[np.ndarray]] = []
    shifts = set()
    for cut in cuts:
        if missing == "skip" and not cut.has_custom(name):
            frames.append(None)
            continue
        frames.append(load_stored(cut, name))
        shifts.add(getattr(cut, name).frame_shift)
    if len(shifts) > 1:
        raise ValueError(f"field '{name}' has several frame shifts: {sorted(shifts)}")
    return pad_field(
        frames,
        shifts.pop() if shifts else 0.0,
        lambda stored: torch.from_numpy(codec.decode(stored)),
    )


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
                batch["fields"][name] = pad_field(frames, shift, Tensor.float)
        return batch


def _calls(lens: Tensor) -> Iterator[tuple[int, int]]:
    """Yield the utterances of each call: first, and behind the last."""
    first, count = 0, len(lens)
    while first < count:
        longest = int(lens[first:].max())
        last = first + max(1, int(_SECONDS * SAMPLE_RATE / longest))
        yield first, min(last, count)
        first = last
