"""Summarize fields for ``bin.fields ls`` and ``show``, without reading arrays."""

import dataclasses
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from icefall_kd.core.files import Pathlike
from icefall_kd.fields.codecs import find_codec
from icefall_kd.fields.codecs.storage import load_codec
from icefall_kd.fields.format import FieldInfo, load_field_info, shard_ids
from icefall_kd.fields.integrity import FieldFiles, find_fields, get_field_files
from icefall_kd.fields.join import Problems, describe_problems

OUTLIER = 10.0  # smallest root mean square of an outlier, in medians over dimensions

# Title of each column, and whether its values are aligned right.
_COLUMNS = (
    ("field", False),
    ("state", False),
    ("kind", False),
    ("dim", True),
    ("shift", True),
    ("codec", False),
    ("size", True),
    ("B/frame", True),
    ("shards", True),
    ("cuts", True),
    ("frames", True),
    ("hours", True),
    ("teacher, layer", False),
)


@dataclass(frozen=True)
class Summary:
    """Summary of one field.

    Attributes:
      name: name of the field.
      state: "complete" (all tars have the recorded size), "unfinished", "damaged",
        "orphan" (shards without cuts) or "foreign" (tars of another program).
      note: problems; empty if there are none.
      kind, dim, frame_shift, codec: see :class:`~icefall_kd.fields.format.FieldInfo`;
        None if unknown.
      bytes: size of all tars.
      num_cuts, num_frames: numbers of cuts and frames in the complete shards.
      shards_done, shards: numbers of complete shards, and of shards of cuts.
      fingerprint: fingerprint of output and codec; empty if unknown.
    """

    name: str
    state: str
    note: str
    kind: Optional[str]
    dim: Optional[int]
    frame_shift: Optional[float]
    codec: Optional[str]
    bytes: int
    num_cuts: int
    num_frames: int
    shards_done: int
    shards: int
    fingerprint: dict[str, Any]

    @property
    def bytes_per_frame(self) -> Optional[float]:
        """Size of the tars divided by the number of frames; None without frames."""
        return self.bytes / self.num_frames if self.num_frames else None

    @property
    def hours(self) -> Optional[float]:
        """Duration of the frames in hours; None if the frame shift is unknown."""
        shift = self.frame_shift
        return None if shift is None else self.num_frames * shift / 3600

    def as_dict(self) -> dict[str, Any]:
        """Return all values, for JSON."""
        derived = {"bytes_per_frame": self.bytes_per_frame, "hours": self.hours}
        return {**dataclasses.asdict(self), **derived}


def summarize_fields(shar_dir: Pathlike) -> list[Summary]:
    """Return a summary of every field, finished or not, sorted by name.

    Raises:
      FileNotFoundError: if the folder does not exist, or is not a Shar folder.
    """
    ids = shard_ids(shar_dir)
    return [_summarize(shar_dir, f, ids) for f in find_fields(shar_dir).values()]


def _summarize(shar_dir: Pathlike, files: FieldFiles, ids: Sequence[str]) -> Summary:
    if files.info is None:
        if files.is_ours:
            return _summarize_shards(files, ids, "unfinished", [])
        note = "no description: another program wrote it, or the folder *.fields is "
        return _summarize_shards(files, ids, "foreign", [note + "missing"])
    try:
        info = load_field_info(shar_dir, files.name)
    except ValueError as e:
        return _summarize_shards(files, ids, "damaged", [str(e)])
    problems = files.check_tars(info, ids)
    faulty = {k: v for k, v in problems.items() if k != "shards without cuts"}
    return Summary(
        name=files.name,
        state="damaged" if faulty else "orphan" if problems else "complete",
        note=_format_note(problems),
        kind=info.kind,
        dim=info.dim,
        frame_shift=info.frame_shift,
        codec=info.codec,
        bytes=_count_bytes(files),
        num_cuts=info.num_cuts,
        num_frames=info.num_frames,
        shards_done=len(ids) - sum(map(len, faulty.values())),
        shards=len(ids),
        fingerprint=info.fingerprint,
    )


def _summarize_shards(
    files: FieldFiles, ids: Sequence[str], state: str, notes: list[str]
) -> Summary:
    """Return the summary of a field without a description, from its shards."""
    states = [s for s in map(files.load_state, ids) if s is not None]
    orphans = sorted(set(files.tars) - set(ids))
    if orphans:
        names = [files.tars[s].name for s in orphans]
        notes = [*notes, _format_note({"shards without cuts": names})]
        if not set(files.tars) & set(ids):
            state = "orphan"
    if files.partial:
        notes = [*notes, f"{len(files.partial)} temporary files"]
    tar = next((files.tars[s] for s in sorted(files.tars)), None)
    first = states[0] if states else None
    return Summary(
        name=files.name,
        state=state,
        note="; ".join(notes),
        kind=_get_kind(first.codec) if first else None,
        dim=len(first.sum) if first else None,
        frame_shift=_read_frame_shift(tar) if tar is not None else None,
        codec=first.codec if first else None,
        bytes=_count_bytes(files),
        num_cuts=sum(s.num_cuts for s in states),
        num_frames=sum(s.num_frames for s in states),
        shards_done=len(states),
        shards=len(ids),
        fingerprint=first.fingerprint if first else {},
    )


def _format_note(problems: Problems) -> str:
    return "; ".join(
        f"{len(cases)} {kind}, for example {', '.join(cases[:5])}"
        for kind, cases in sorted(problems.items())
    )


def _count_bytes(files: FieldFiles) -> int:
    return sum(path.stat().st_size for path in files.tars.values())


def _get_kind(codec: str) -> Optional[str]:
    """Return the kinds that a codec can store, as "ctc/path"; None if unknown."""
    try:
        return "/".join(find_codec(codec)[0].kinds)
    except ValueError:
        return None


def _read_frame_shift(tar: Path) -> Optional[float]:
    """Return the frame shift of the first array; None if it cannot be read."""
    try:
        with tar.open("rb") as f, tarfile.open(fileobj=f, mode="r|") as members:
            for member in members:
                if member.name.endswith(".json"):
                    return json.loads(members.extractfile(member).read())["frame_shift"]
    except (tarfile.TarError, OSError, EOFError, ValueError, KeyError):
        pass
    return None


def describe_field(shar_dir: Pathlike, field: str) -> tuple[str, bool]:
    """Return a description of a field, and whether it is complete.

    Returns:
      description of several lines; True if all tars have the recorded size and all cuts
      have a target.
    Raises:
      FileNotFoundError: if the folder or the field does not exist.
    """
    ids = shard_ids(shar_dir)
    files = get_field_files(shar_dir, field)
    summary = _summarize(shar_dir, files, ids)
    row = dict(zip((title for title, _ in _COLUMNS), _format_row(summary)))
    row["state"] += f" ({summary.note})" if summary.note else ""
    del row["field"]
    lines = [f"{shar_dir}: field '{field}'", *_format_pairs(row)]
    if summary.fingerprint:
        lines += ["fingerprint", *_format_pairs(summary.fingerprint)]
    joined, total, problems = files.count_targets(shar_dir, ids)
    try:
        info = load_field_info(shar_dir, field)
    except (FileNotFoundError, ValueError):  # the state of the summary has the reason
        info = None
    if info is not None:
        lines += _describe_statistics(info)
        problems.update(files.check_tars(info, ids))
        try:
            load_codec(shar_dir, info)
        except (FileNotFoundError, ValueError) as e:
            problems["codec"] = [str(e)]
    lines += [
        f"targets: {joined} of {total} cuts",
        f"files: {summary.shards_done} of {len(ids)} shards have the recorded size; "
        "'fields verify' checks their content",
        *describe_problems(problems).splitlines(),
    ]
    return "\n".join(lines), summary.state == "complete" and not problems


def _describe_statistics(info: FieldInfo) -> list[str]:
    title = f"statistics over {info.num_frames:,} frames"
    if info.kind == "ctc":
        k = info.dim // 2
        return [
            title,
            f"  mean log-probability of the best token  {info.mean[k]:.3f}",
            f"  mean mass beyond the {k} best tokens     {info.mean[-1]:.4f}",
        ]
    if info.kind != "embedding":  # means of token ids are meaningless
        return []
    found = find_outlier_dims(info)

    def format_dims(dims: Sequence[int]) -> str:
        return ", ".join(f"{d}: {info.mean[d]:.3g} ± {info.std[d]:.3g}" for d in dims)

    outliers = f"{len(found.outliers)} dimensions, {100 * found.energy:.0f} % of the "
    outliers += "mean square"
    if found.outliers:
        outliers += f"; {format_dims(found.outliers[:5])}"
    return [
        f"{title} (dimension: mean ± standard deviation)",
        f"  largest means      {format_dims(found.largest_mean)}",
        f"  largest spreads    {format_dims(found.largest_std)}",
        f"  smallest spreads   {format_dims(found.smallest_std)}",
        f"  above {OUTLIER:g} x median  {outliers}",
    ]


@dataclass(frozen=True)
class OutlierDims:
    """Extreme dimensions of an embedding, the most extreme first.

    Attributes:
      largest_mean, largest_std, smallest_std: indices of a few dimensions each.
      outliers: dimensions whose root mean square is above 10 times the median.
      energy: share of the outliers in the mean squared norm, 0 .. 1.
    """

    largest_mean: list[int]
    largest_std: list[int]
    smallest_std: list[int]
    outliers: list[int]
    energy: float


def find_outlier_dims(info: FieldInfo, count: int = 5) -> OutlierDims:
    """Find the dimensions that dominate a mean squared error.

    Whisper and similar teachers have a few dimensions that are a hundred times larger
    than the rest.

    Args:
      count: number of dimensions in each list of the largest and smallest.
    """
    mean, std = np.array(info.mean), np.array(info.std)
    square = mean**2 + std**2
    rms = np.sqrt(square)
    by_rms = np.argsort(-rms, kind="stable")
    outliers = [int(d) for d in by_rms if rms[d] > OUTLIER * np.median(rms)]
    by_mean = np.argsort(-np.abs(mean), kind="stable")
    by_std = np.argsort(-std, kind="stable")
    return OutlierDims(
        largest_mean=by_mean[:count].tolist(),
        largest_std=by_std[:count].tolist(),
        smallest_std=by_std[::-1][:count].tolist(),
        outliers=outliers,
        energy=float(square[outliers].sum() / max(square.sum(), 1e-30)),
    )


def format_table(fields: Sequence[Summary]) -> list[str]:
    """Return aligned lines: titles, one line for each field, and the notes."""
    if not fields:
        return ["  no fields"]
    rows = [[title for title, _ in _COLUMNS]] + [_format_row(s) for s in fields]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, (_, is_number) in zip(row, widths, _COLUMNS)
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines + [f"  {s.name}: {s.note}" for s in fields if s.note]


def _format_row(s: Summary) -> list[str]:
    def format_known(value: Any, form: str = "{}") -> str:
        return "-" if value is None else form.format(value)

    shift = None if s.frame_shift is None else 1000 * s.frame_shift
    source = [s.fingerprint.get("teacher"), _format_layers(s.fingerprint)]
    return [
        s.name,
        s.state,
        format_known(s.kind),
        format_known(s.dim),
        format_known(shift, "{:g} ms"),
        format_known(s.codec),
        format_size(s.bytes),
        format_known(s.bytes_per_frame, "{:.1f}"),
        f"{s.shards_done}/{s.shards}",
        f"{s.num_cuts:,}",
        f"{s.num_frames:,}",
        format_known(s.hours, "{:.2f}"),
        ", ".join(str(x) for x in source if x is not None) or "-",
    ]


def _format_layers(fingerprint: Mapping[str, Any]) -> Optional[str]:
    """Return the layer, or the layers with their weights; None if unknown."""
    layers = fingerprint.get("layers", fingerprint.get("layer"))
    if not isinstance(layers, list):
        return layers
    weights = fingerprint.get("layer_weights")
    if weights is None:
        return " ".join(map(str, layers))
    return " + ".join(f"{w:g} x {k}" for k, w in zip(layers, weights))


def _format_pairs(values: Mapping[str, Any]) -> list[str]:
    width = max(map(len, values))
    return [f"  {name.ljust(width)}  {value}" for name, value in values.items()]


def format_size(num_bytes: float) -> str:
    """Return a size in powers of 1000, for example "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
