"""What is known of fields, as text for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from icefall_kd.core.files import Pathlike
from icefall_kd.fields.codecs.storage import load_codec
from icefall_kd.fields.format import FieldInfo, load_field_info, shard_ids
from icefall_kd.fields.join import describe
from icefall_kd.fields.survey import (
    FieldFiles,
    Summary,
    completeness,
    field_files,
    quick_look,
    summarise,
)
from icefall_kd.fields.writer import OUTLIER, find_outlier_dims

# Title of each column, and whether its values are numbers, to be flush right.
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


def table(fields: Sequence[Summary]) -> list[str]:
    """Return aligned lines: the columns' titles, a line a field, and what is wrong."""
    if not fields:
        return ["  no fields"]
    rows = [[title for title, _ in _COLUMNS]] + [_row(s) for s in fields]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, (_, number) in zip(row, widths, _COLUMNS)
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines + [f"  {s.name}: {s.note}" for s in fields if s.note]


def size(num_bytes: float) -> str:
    """Return a number of bytes with its unit, powers of 1000: "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"


def describe_field(shar_dir: Pathlike, field: str) -> tuple[str, bool]:
    """Return all that is known of a field without reading its arrays.

    Returns:
      the text; and whether all shards are there in their sizes and all cuts have
      their targets.
    Raises:
      FileNotFoundError: if there is no such folder or field.
    """
    ids = shard_ids(shar_dir)
    files = field_files(shar_dir, field)
    summary = summarise(shar_dir, files, ids)
    lines = [f"{shar_dir}: field '{field}'", *_facts(summary)]
    if summary.fingerprint:
        lines += ["fingerprint", *_pairs(summary.fingerprint)]
    joined, total, astray = completeness(shar_dir, files, ids)
    wrong = dict(astray)
    info = _info(shar_dir, files)
    if info is not None:
        lines += _statistics(info)
        wrong.update(quick_look(files, info, ids))
        try:
            load_codec(shar_dir, info)
        except (FileNotFoundError, ValueError) as e:
            wrong["codec"] = [str(e)]
    lines += [
        f"targets: {joined} of {total} cuts have theirs",
        f"files: {summary.shards_done} of {len(ids)} shards are there in their sizes; "
        "'fields verify' proves what they hold",
        *describe(wrong).splitlines(),
    ]
    return "\n".join(lines), summary.state == "whole" and not wrong


def _info(shar_dir: Pathlike, files: FieldFiles) -> Optional[FieldInfo]:
    """Return the description; None where there is none, or it cannot be read."""
    if files.info is None:
        return None
    try:
        return load_field_info(shar_dir, files.name)
    except ValueError:  # told in the summary
        return None


def _row(s: Summary) -> list[str]:
    def told(value: Any, form: str = "{}") -> str:
        return "-" if value is None else form.format(value)

    shift = None if s.frame_shift is None else 1000 * s.frame_shift
    return [
        s.name,
        s.state,
        told(s.kind),
        told(s.dim),
        told(shift, "{:g} ms"),
        told(s.codec),
        size(s.bytes),
        told(s.bytes_per_frame, "{:.1f}"),
        f"{s.shards_done}/{s.shards}",
        f"{s.num_cuts:,}",
        f"{s.num_frames:,}",
        told(s.hours, "{:.2f}"),
        _speaker(s),
    ]


def _speaker(s: Summary) -> str:
    """Return the teacher and its layer, as far as the fingerprint tells."""
    told = [s.fingerprint.get("teacher"), _layers(s.fingerprint)]
    return ", ".join(str(x) for x in told if x is not None) or "-"


def _layers(fingerprint: Mapping[str, Any]) -> Optional[str]:
    """Return the layers of a teacher of one family or the other, with their weights."""
    layers = fingerprint.get("layers", fingerprint.get("layer"))
    if not isinstance(layers, list):
        return layers
    weights = fingerprint.get("layer_weights")
    if weights is None:
        return " ".join(map(str, layers))
    return " + ".join(f"{w:g} x {k}" for k, w in zip(layers, weights))


def _facts(s: Summary) -> list[str]:
    row = dict(zip((title for title, _ in _COLUMNS), _row(s)))
    row["state"] += f" ({s.note})" if s.note else ""
    del row["field"]
    return _pairs(row)


def _pairs(values: Mapping[str, Any]) -> list[str]:
    width = max(map(len, values))
    return [f"  {name.ljust(width)}  {value}" for name, value in values.items()]


def _statistics(info: FieldInfo) -> list[str]:
    """Return what the mean and the spread of the frames tell."""
    title = f"statistics over {info.num_frames:,} frames"
    if info.kind == "ctc":
        k = info.dim // 2
        return [
            title,
            f"  best token's log-probability  {info.mean[k]:.3f} on average",
            f"  mass beyond the {k} best       {info.mean[-1]:.4f} on average",
        ]
    if info.kind != "embedding":  # of tokens: means of them tell nothing
        return []
    found = find_outlier_dims(info)

    def dims(places: Sequence[int]) -> str:
        return ", ".join(f"{d}: {info.mean[d]:.3g} ± {info.std[d]:.3g}" for d in places)

    share = f"{100 * found.energy:.0f} % of the mean square"
    outliers = f"{len(found.outliers)} dimensions, {share}"
    if found.outliers:
        outliers += f"; {dims(found.outliers[:5])}"
    return [
        f"{title} (dimension: mean ± standard deviation)",
        f"  largest means      {dims(found.largest_mean)}",
        f"  largest spreads    {dims(found.largest_std)}",
        f"  smallest spreads   {dims(found.smallest_std)}",
        f"  above {OUTLIER:g} x median  {outliers}",
    ]
