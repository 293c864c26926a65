"""What an extraction will take in room and in time, as a table and as plain data."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from icefall_kd.cache.codecs import bytes_per_frame
from icefall_kd.cache.obtain import spec_of
from icefall_kd.cache.plan import Volume, predict_bytes, with_margin
from icefall_kd.cache.probe import Speed
from icefall_kd.teachers.protocol import Output

_DIMS = re.compile(r"([A-Za-z_]\w*)=(\d+)@(\d+(?:\.\d+)?)")


def parse_dims(texts: Sequence[str]) -> dict[str, Output]:
    """Return outputs that are described without a teacher: NAME=VALUES@HZ each.

    Raises:
      ValueError: if a text is of another form.

    >>> parse_dims(["wavlm_large=1024@50"])["wavlm_large"].frame_shift
    0.02
    """
    outputs = {}
    for text in texts:
        match = _DIMS.fullmatch(text)
        if match is None or float(match[3]) == 0:
            raise ValueError(f"--dims {text}: expected NAME=VALUES@HZ, as a=1024@50")
        outputs[match[1]] = Output("embedding", int(match[2]), 1 / float(match[3]), {})
    return outputs


def forecast(
    volume: Volume,
    outputs: Mapping[str, Output],
    codecs: Sequence[str],
    *,
    free: Optional[int] = None,
    speed: Optional[Speed] = None,
) -> dict[str, Any]:
    """Return what an extraction will take, for each codec of the embeddings.

    Args:
      volume:  of the audio.
      outputs: by field.
      codecs:  to compare.
      free:    bytes; None where it is not known.
      speed:   None leaves out the hours.
    Returns:
      "hours_of_audio", "cuts", "shards", "free_bytes"; "fields": {field, codec, dim,
      rate_hz, bytes_per_frame, bytes} each; "totals": {codec, bytes, needed_bytes,
      fits, hours} for each codec; and, with a speed, "hours": {reading, teachers,
      codecs} of one process.
    """
    rows = [_row(volume, f, o, spec) for f, o in outputs.items() for spec in codecs]
    result: dict[str, Any] = {
        "hours_of_audio": volume.seconds / 3600,
        "cuts": volume.num_cuts,
        "shards": volume.num_shards,
        "free_bytes": free,
        "fields": [row for n, row in enumerate(rows) if row not in rows[:n]],
        "totals": [
            _total(rows[n :: len(codecs)], c, free) for n, c in enumerate(codecs)
        ],
    }
    if speed is not None:
        _add_hours(result, volume, outputs, speed)
    return result


def _row(volume: Volume, field: str, output: Output, codec: str) -> dict[str, Any]:
    spec = spec_of(output, codec)
    per_frame = bytes_per_frame(spec, output.dim)
    return {
        "field": field,
        "codec": spec,
        "dim": output.dim,
        "rate_hz": round(1 / output.frame_shift, 3),
        "bytes_per_frame": per_frame,
        "bytes": predict_bytes(volume, output, per_frame),
    }


def _total(
    rows: Sequence[Mapping[str, Any]], codec: str, free: Optional[int]
) -> dict[str, Any]:
    total = sum(row["bytes"] for row in rows)
    needed = with_margin(total)
    return {
        "codec": codec,
        "bytes": total,
        "needed_bytes": needed,
        "fits": None if free is None else free >= needed,
        "hours": None,
    }


def _add_hours(
    result: dict[str, Any],
    volume: Volume,
    outputs: Mapping[str, Output],
    speed: Speed,
) -> None:
    hours = volume.seconds / 3600
    teachers = {name: hours * cost for name, cost in speed.teachers.items()}
    codecs = {}
    for total in result["totals"]:
        costs = [
            speed.codecs[f, spec_of(o, total["codec"])] for f, o in outputs.items()
        ]
        known = None if None in costs else hours * sum(costs)
        codecs[total["codec"]] = known
        total["hours"] = hours * speed.reading + sum(teachers.values()) + (known or 0.0)
    result["hours"] = {
        "probed_s": speed.seconds,
        "reading": hours * speed.reading,
        "teachers": teachers,
        "codecs": codecs,
    }


def as_table(result: Mapping[str, Any]) -> str:
    """Return a forecast for people to read."""
    head = ["field", "codec", "values", "Hz", "bytes/frame", "GB"]
    rows = [
        [
            row["field"],
            row["codec"],
            str(row["dim"]),
            f"{row['rate_hz']:g}",
            f"{row['bytes_per_frame']:g}",
            _gigabytes(row["bytes"]),
        ]
        for row in result["fields"]
    ]
    rows += [
        ["all", total["codec"], "", "", "", _gigabytes(total["bytes"])]
        for total in result["totals"]
    ]
    title = "{hours_of_audio:,.1f} h of audio, {cuts:,} cuts, {shards:,} shards"
    lines = [title.format(**result), *_aligned([head, *rows])]
    if result["free_bytes"] is not None:
        lines += ["", f"free: {_gigabytes(result['free_bytes'])} GB"]
        lines += [
            f"{t['codec']} needs {_gigabytes(t['needed_bytes'])} GB with a tenth to "
            f"spare: {'enough' if t['fits'] else 'NOT ENOUGH'}"
            for t in result["totals"]
        ]
    if "hours" in result:
        lines += ["", *_hours(result)]
    return "\n".join(lines)


def _hours(result: Mapping[str, Any]) -> list[str]:
    hours = result["hours"]
    rows = [["reading audio", f"{hours['reading']:,.3f}"]]
    rows += [[name, f"{h:,.3f}"] for name, h in hours["teachers"].items()]
    for codec, h in hours["codecs"].items():
        rows.append([f"codec {codec}", "not timed" if h is None else f"{h:,.3f}"])
    rows += [[f"all, {t['codec']}", f"{t['hours']:,.3f}"] for t in result["totals"]]
    title = f"hours of one process (from a probe of {hours['probed_s']:.0f} s of audio)"
    return [title, *_aligned(rows)]


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.{3 if count < 1e9 else 1}f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines; the first two columns to the left, numbers to the right."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if n < 2 and len(row) > 2 or n == 0 else text.rjust(width)
            for n, (text, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
