"""A picture of one cut with its fields, to see alignment with the eye.

Time is the one axis that all panels share, from 0 to the cut's end.  Fbank frame f is
drawn over f * 10 ms .. (f + 1) * 10 ms, a teacher's frame k over k * shift ..
(k + 1) * shift, as :mod:`icefall_kd.core.frames` has it; nothing is resampled.
"""

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from lhotse.cut import Cut

from icefall_kd import BLANK_ID, FBANK_SHIFT
from icefall_kd.core.files import Pathlike, write_atomically
from icefall_kd.core.frames import unpack_topk
from icefall_kd.data.features import compute_fbank
from icefall_kd.fields.codecs.storage import load_codec
from icefall_kd.fields.format import (
    FieldInfo,
    cuts_path,
    load_field_info,
    recording_path,
    shard_ids,
    tar_path,
)
from icefall_kd.fields.join import describe
from icefall_kd.fields.shards import Shard
from icefall_kd.fields.survey import join_problems

_COMPONENTS = 3  # as red, green and blue
_CLIPPED = 0.02  # share of the frames at either end that get the extreme colour
_SEARCHED = 100_000  # ids among which near matches are looked for

Symbol = Callable[[int], str]  # of a token
Frames = dict[str, tuple[FieldInfo, np.ndarray]]  # field -> what it is, (T, W) float32


@dataclass(frozen=True)
class CutWithFields:
    """One cut with its audio and the whole arrays of some fields."""

    cut: Cut
    frames: Frames


def read_cut(shar_dir: Pathlike, cut_id: str, fields: Sequence[str]) -> CutWithFields:
    """Read one cut, its audio and its frames; no other cut's.

    Raises:
      FileNotFoundError: if there is no such folder, field or cut; the message has the
        cuts of like name.
      ValueError: if a file is damaged, or a field does not join the cut's shard.
    """
    infos = {field: load_field_info(shar_dir, field) for field in fields}
    codecs = {field: load_codec(shar_dir, info) for field, info in infos.items()}
    shard, place = find_cut(shar_dir, cut_id)
    for field in fields:
        problems = join_problems(shar_dir, field, shard)
        if problems:
            raise ValueError(
                f"{shar_dir}: field '{field}' does not join the cuts of shard {shard}:"
                f"\n{describe(problems)}\nRun icefall_kd.bin.extract again"
            )
    tars = {field: tar_path(shar_dir, field, shard) for field in fields}
    tars["recording"] = recording_path(shar_dir, shard)
    absent = [str(tar) for tar in tars.values() if not tar.is_file()]
    if absent:
        raise ValueError(f"missing: {', '.join(absent)}; copy them, or make them again")
    opened = Shard(cuts_path(shar_dir, shard), tars)
    cut = next(cut for _, cut in opened.read(wanted=(place,)))
    frames: Frames = {
        # The array itself: loading it through the cut would round to its duration.
        field: (info, codecs[field].decode(getattr(cut, field).load()))
        for field, info in infos.items()
    }
    return CutWithFields(cut, frames)


def find_cut(shar_dir: Pathlike, cut_id: str) -> tuple[str, int]:
    """Return the shard that holds a cut, and its place there.

    Raises:
      FileNotFoundError: if none does; the message has the ids most like it.
    """
    seen: list[str] = []
    for shard in shard_ids(shar_dir):
        for place, line in enumerate(Shard(cuts_path(shar_dir, shard), {}).lines()):
            if line["id"] == cut_id:
                return shard, place
            if len(seen) < _SEARCHED:
                seen.append(line["id"])
    like = [i for i in seen if cut_id in i] + difflib.get_close_matches(cut_id, seen)
    near = list(itertools.islice(dict.fromkeys(like), 5))
    raise FileNotFoundError(
        f"{shar_dir}: there is no cut '{cut_id}'; like it: {', '.join(near) or 'none'}"
    )


def save_figure(figure: Any, path: Pathlike) -> None:
    """Write a figure as PNG, whole or not at all.

    Raises:
      ValueError: if the name ends otherwise.
    """
    if Path(str(path)).suffix != ".png":
        raise ValueError(f"{path}: give the picture a name that ends in .png")
    with write_atomically(path) as aside:
        figure.savefig(aside, dpi=120)


def draw(read: CutWithFields, symbol: Symbol = str) -> Any:
    """Return a matplotlib Figure: the spectrogram, below it two panels a field.

    Args:
      symbol: of a token, to label fields of kind "ctc"; its id by default.
    Raises:
      ValueError: if matplotlib is not installed, or a field's kind cannot be drawn.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ValueError(
            "drawing needs matplotlib: pip install matplotlib, then run this again"
        ) from e
    cut = read.cut
    heights = [3.0] + [1.5, 1.0] * len(read.frames)
    width = min(30.0, max(8.0, 3.0 * cut.duration))
    figure = Figure(figsize=(width, 1.0 + sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, height_ratios=heights
    )[:, 0]
    _draw_fbank(axes[0], cut)
    for n, (field, (info, x)) in enumerate(read.frames.items()):
        panels = axes[1 + 2 * n], axes[2 + 2 * n]
        if info.kind not in _DRAWN:
            raise ValueError(
                f"field '{field}' is of kind '{info.kind}', which cannot be drawn; "
                f"leave it out: those that can are {sorted(_DRAWN)}"
            )
        _DRAWN[info.kind](*panels, field, info, x, symbol)
    axes[0].set_xlim(0.0, cut.duration)  # of all: they share it
    axes[-1].set_xlabel("s")
    text = " ".join(s.text for s in cut.supervisions if s.text)
    figure.suptitle(f"{cut.id}\n{text}" if text else cut.id, fontsize=10)
    return figure


def edges(num_frames: int, frame_shift: float) -> np.ndarray:
    """Return where each frame begins and the last one ends, (T + 1,) in seconds."""
    return np.arange(num_frames + 1) * frame_shift


def project(x: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return the first three principal components of frames, each scaled to 0 .. 1.

    Each dimension is divided by its spread over the whole field first, so that the
    few that are a hundred times larger do not fill all three.

    Args:
      x:   (T, D) float32.
      std: (D,), of the field.
    Returns:
      (T, 3) float64; a component that the frames do not have is 0.5.
    """
    centred = (x - x.mean(axis=0)).astype(np.float64) / np.maximum(std, 1e-6)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:_COMPONENTS]
    # The sign of a component is arbitrary: its largest entry is made positive.
    largest = np.abs(directions).argmax(axis=1)[:, None]
    directions = directions * np.sign(np.take_along_axis(directions, largest, axis=1))
    scores = centred @ directions.T
    low, high = np.quantile(scores, [_CLIPPED, 1 - _CLIPPED], axis=0)
    spread = high - low
    scaled = (scores - low) / np.where(spread > 1e-9, spread, 1.0)
    out = np.full((len(x), _COMPONENTS), 0.5)
    out[:, : scores.shape[1]] = np.where(spread > 1e-9, scaled, 0.5)
    return out.clip(0.0, 1.0)


def best_tokens(x: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (token, first frame, frames) of each run of one best token, blank not.

    Args:
      x: (T, 2 k + 1) float32, see :mod:`icefall_kd.core.frames`.
    """
    best = unpack_topk(torch.from_numpy(x))[0][:, 0].tolist()
    runs, first = [], 0
    for token, group in itertools.groupby(best):
        count = len(list(group))
        if token != BLANK_ID:
            runs.append((token, first, count))
        first += count
    return runs


def blank_probability(x: np.ndarray) -> np.ndarray:
    """Return each frame's probability of the blank, 0 where it is not among the best.

    Args:
      x: (T, 2 k + 1) float32, see :mod:`icefall_kd.core.frames`.
    """
    ids, log_probs, _ = unpack_topk(torch.from_numpy(x))
    return (log_probs.exp() * (ids == BLANK_ID)).sum(dim=-1).numpy()


def _draw_fbank(panel: Any, cut: Cut) -> None:
    fbank = compute_fbank([torch.from_numpy(cut.load_audio()[0]).float()])[0].numpy()
    end = len(fbank) * FBANK_SHIFT
    panel.imshow(
        fbank.T,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(0.0, end, 0, fbank.shape[1]),
    )
    panel.set_ylabel("log-mel")


def _draw_embedding(
    upper: Any,
    lower: Any,
    field: str,
    info: FieldInfo,
    x: np.ndarray,
    symbol: Symbol,
) -> None:
    ends = edges(len(x), info.frame_shift)
    upper.stairs(np.linalg.norm(x, axis=1), ends, baseline=None)
    upper.set_ylabel(f"{field}\nnorm", fontsize=8)
    colours = project(x, np.array(info.std))
    lower.imshow(
        colours[None],  # (1, T, 3)
        aspect="auto",
        interpolation="nearest",
        extent=(0.0, ends[-1], 0, 1),
    )
    lower.set_yticks([])
    lower.set_ylabel("PCA", fontsize=8)


def _draw_ctc(
    upper: Any,
    lower: Any,
    field: str,
    info: FieldInfo,
    x: np.ndarray,
    symbol: Symbol,
) -> None:
    ends = edges(len(x), info.frame_shift)
    upper.stairs(blank_probability(x), ends, baseline=None)
    upper.set_ylim(-0.02, 1.02)
    upper.set_ylabel(f"{field}\nblank", fontsize=8)
    lower.set_yticks([])
    lower.set_ylabel("tokens", fontsize=8)
    for n, (token, first, count) in enumerate(best_tokens(x)):
        begin, end = ends[first], ends[first + count]
        lower.axvspan(begin, end, alpha=0.3)
        height = 0.3 if n % 2 else 0.7  # so that neighbours do not overlap
        place = ((begin + end) / 2, height)
        lower.text(*place, symbol(token), ha="center", va="center", size=7)


_DRAWN = {"embedding": _draw_embedding, "ctc": _draw_ctc}  # by kind
