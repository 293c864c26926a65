"""Draw one cut with its fields on a common time axis.

Frame k covers the time from k * shift to (k + 1) * shift, as in
:mod:`icefall_kd.core.frames`.  The shift is 10 ms for fbank and that of the field for a
teacher's frames; no frames are resampled.
"""

import difflib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse.cut import Cut

from icefall_kd import BLANK_ID, FBANK_SHIFT
from icefall_kd.core.files import Pathlike, write_atomically
from icefall_kd.core.frames import unpack_topk
from icefall_kd.data.features import compute_fbank
from icefall_kd.fields.codecs.storage import load_codecs
from icefall_kd.fields.format import FieldInfo, load_field_info
from icefall_kd.fields.reader import open_shards
from icefall_kd.fields.shards import Shard

_COMPONENTS = 3  # red, green and blue
_CLIPPED = 0.02  # share of the frames at either end that get the extreme colour
_MAX_CANDIDATES = 100_000  # cut ids that are compared with an unknown one

FormatToken = Callable[[int], str]


@dataclass(frozen=True)
class CutWithFields:
    """One cut with its audio and its fields.

    Attributes:
      cut: cut with its audio.
      frames: field -> (description, (T, W) float32 frames).
    """

    cut: Cut
    frames: dict[str, tuple[FieldInfo, np.ndarray]]


def read_cut(shar_dir: Pathlike, cut_id: str, fields: Sequence[str]) -> CutWithFields:
    """Read the audio and the frames of one cut.

    Raises:
      FileNotFoundError: if the folder, a field or the cut does not exist; for a cut,
        the message has similar ids.
      ValueError: if a file is damaged, or a field does not join the cuts.
    """
    codecs = load_codecs(shar_dir, fields)
    shard, index = _find_cut(shar_dir, open_shards(shar_dir, fields), cut_id)
    cut = next(cut for _, cut in shard.read(wanted=(index,)))
    # The complete array: cut.load_<field>() would truncate it to the cut's duration.
    arrays = {f: codec.decode(getattr(cut, f).load()) for f, codec in codecs.items()}
    return CutWithFields(
        cut, {f: (load_field_info(shar_dir, f), x) for f, x in arrays.items()}
    )


def _find_cut(
    shar_dir: Pathlike, shards: Sequence[Shard], cut_id: str
) -> tuple[Shard, int]:
    """Return the shard of a cut, and the cut's index in the shard."""
    ids: list[str] = []
    for shard in shards:
        for index, line in enumerate(shard.lines()):
            if line["id"] == cut_id:
                return shard, index
            if len(ids) < _MAX_CANDIDATES:
                ids.append(line["id"])
    similar = [i for i in ids if cut_id in i] + difflib.get_close_matches(cut_id, ids)
    similar = list(dict.fromkeys(similar))[:5]
    raise FileNotFoundError(
        f"{shar_dir}: no cut '{cut_id}'. Similar ids: {', '.join(similar) or 'none'}"
    )


def save_figure(figure: Any, path: Pathlike) -> None:
    """Write a figure as PNG, atomically.

    Raises:
      ValueError: if the name has another suffix.
    """
    if Path(str(path)).suffix != ".png":
        raise ValueError(f"{path}: not a .png file. Choose a name that ends in .png")
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=120)


def draw(data: CutWithFields, format_token: FormatToken = str) -> Any:
    """Return a matplotlib Figure: the log-mel features, and two panels for each field.

    Args:
      data: cut to draw.
      format_token: function that returns the label of a token id, for fields of kind
        "ctc".
    Raises:
      ValueError: if matplotlib is missing, or a field's kind cannot be drawn.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ValueError(
            "fields plot needs matplotlib. Run 'pip install matplotlib'"
        ) from e
    cut = data.cut
    heights = [3.0] + [1.5, 1.0] * len(data.frames)
    width = min(30.0, max(8.0, 3.0 * cut.duration))
    figure = Figure(figsize=(width, 1.0 + sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, height_ratios=heights
    )[:, 0]
    _draw_fbank(axes[0], cut)
    for n, (field, (info, x)) in enumerate(data.frames.items()):
        panels = axes[1 + 2 * n], axes[2 + 2 * n]
        if info.kind not in _DRAW:
            raise ValueError(
                f"field '{field}' is of kind '{info.kind}', which cannot be drawn. "
                f"Name fields of kind {' or '.join(sorted(_DRAW))}"
            )
        _DRAW[info.kind](*panels, field, info, x, format_token)
    axes[0].set_xlim(0.0, cut.duration)  # all panels share it
    axes[-1].set_xlabel("s")
    text = " ".join(s.text for s in cut.supervisions if s.text)
    figure.suptitle(f"{cut.id}\n{text}" if text else cut.id, fontsize=10)
    return figure


def frame_edges(num_frames: int, frame_shift: float) -> np.ndarray:
    """Return the start of each frame and the end of the last, (T + 1,) in seconds."""
    return np.arange(num_frames + 1) * frame_shift


def project(x: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return the first three principal components of frames, each scaled to 0 .. 1.

    Divides each dimension by its standard deviation over the field, since a few
    dimensions are a hundred times larger than the others.

    Args:
      x:   (T, D) float32.
      std: (D,) float64, over the field.
    Returns:
      (T, 3) float64; 0.5 for a component without variance.
    """
    centred = (x - x.mean(axis=0)).astype(np.float64) / np.maximum(std, 1e-6)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:_COMPONENTS]
    # The sign of a component is arbitrary; make its largest entry positive.
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
    """Return (token, first frame, number of frames) of each run of one best token.

    Runs of the blank are omitted.

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
    """Return the blank's probability in each frame, (T,) float32.

    The probability is 0 if the blank is not among the k best tokens.

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
    format_token: FormatToken,
) -> None:
    edges = frame_edges(len(x), info.frame_shift)
    upper.stairs(np.linalg.norm(x, axis=1), edges, baseline=None)
    upper.set_ylabel(f"{field}\nnorm", fontsize=8)
    colours = project(x, np.array(info.std))
    lower.imshow(
        colours[None],  # (1, T, 3)
        aspect="auto",
        interpolation="nearest",
        extent=(0.0, edges[-1], 0, 1),
    )
    lower.set_yticks([])
    lower.set_ylabel("PCA", fontsize=8)


def _draw_ctc(
    upper: Any,
    lower: Any,
    field: str,
    info: FieldInfo,
    x: np.ndarray,
    format_token: FormatToken,
) -> None:
    edges = frame_edges(len(x), info.frame_shift)
    upper.stairs(blank_probability(x), edges, baseline=None)
    upper.set_ylim(-0.02, 1.02)
    upper.set_ylabel(f"{field}\nblank", fontsize=8)
    lower.set_yticks([])
    lower.set_ylabel("tokens", fontsize=8)
    for n, (token, first, count) in enumerate(best_tokens(x)):
        begin, end = edges[first], edges[first + count]
        lower.axvspan(begin, end, alpha=0.3)
        height = 0.3 if n % 2 else 0.7  # neighbours do not overlap
        lower.text(
            (begin + end) / 2,
            height,
            format_token(token),
            ha="center",
            va="center",
            size=7,
        )


_DRAW = {"embedding": _draw_embedding, "ctc": _draw_ctc}  # by kind
