"""Plan an extraction: the shards of a job, its disk space and its time."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from icefall_kd.core.files import Pathlike, as_path, is_local
from icefall_kd.fields.codecs import bytes_per_frame, codec_for_kind
from icefall_kd.fields.format import cuts_path, shard_ids
from icefall_kd.fields.join import read_keys
from icefall_kd.teachers.base import Output

# Bytes on disk in addition to the frames, per cut, shard or dimension.
_CUT = 512 + 128 + 256 + 1024  # tar header, array header, half a tar block, manifest
_CUT_STATE = 220  # key of a cut as indented JSON
_SHARD = 1024 + 10240 // 2  # end of a tar, and mean padding to its record size
_VALUE_STATE = 2 * 24  # two sums of a dimension as JSON
_SHARD_SIZE = 1000  # cuts per shard of a corpus on another machine
_MARGIN = 1.1  # required free bytes per predicted byte

_DIMS = re.compile(r"([A-Za-z_]\w*)=(\d+)@(\d+(?:\.\d+)?)")


def select_shards(ids: Sequence[str], selection: Optional[str]) -> list[str]:
    """Return the shards of a selection, sorted, each once.

    Args:
      ids: sorted ids of all shards.
      selection: comma-separated parts; each is an index into ``ids``, or a Python
        slice START:END[:STEP].  None selects all.
    Raises:
      ValueError: if a part is invalid, or no shard is selected.

    >>> select_shards(["000000", "000001", "000002", "000003"], "::2,3")
    ['000000', '000002', '000003']
    """
    if selection is None:
        return list(ids)
    indices: set[int] = set()
    for part in selection.split(","):
        try:
            numbers = [int(text) if text else None for text in part.strip().split(":")]
            if len(numbers) > 1:
                indices.update(range(len(ids))[slice(*numbers)])
            else:
                indices.add(range(len(ids)).index(numbers[0]))
        except (TypeError, ValueError) as e:
            raise ValueError(
                f"--shards {selection}: '{part.strip()}' is no selection from "
                f"{len(ids)} shards. Give indices from 0, for example 0:100, ::4 or "
                "3,7,10:20"
            ) from e
    if not indices:
        raise ValueError(
            f"--shards {selection} selects none of the {len(ids)} shards. Give indices "
            f"in 0:{len(ids)}"
        )
    return [ids[n] for n in sorted(indices)]


@dataclass(frozen=True)
class Volume:
    """Amount of audio to extract.

    Attributes:
      num_cuts: number of cuts.
      seconds: total duration of the cuts.
      num_shards: number of shards.
    """

    num_cuts: int = 0
    seconds: float = 0.0
    num_shards: int = 0

    def __add__(self, other: "Volume") -> "Volume":
        return Volume(
            self.num_cuts + other.num_cuts,
            self.seconds + other.seconds,
            self.num_shards + other.num_shards,
        )

    @classmethod
    def of_shard(cls, shar_dir: Pathlike, shard: str) -> "Volume":
        """Return the volume of one shard."""
        keys = read_keys(cuts_path(shar_dir, shard))
        return cls(len(keys), sum(key[3] for key in keys), 1)

    @classmethod
    def of_corpus(cls, hours: float, cut_duration: float) -> "Volume":
        """Return the volume of a corpus on another machine.

        Args:
          hours: total duration of the corpus in hours.
          cut_duration: mean duration of a cut in seconds.
        """
        num_cuts = max(1, round(hours * 3600 / cut_duration))
        return cls(num_cuts, hours * 3600, -(-num_cuts // _SHARD_SIZE))


def measure_volume(
    shar_dirs: Sequence[Pathlike], shards: Optional[str] = None
) -> Volume:
    """Return the amount of audio in Shar folders.

    Args:
      shards: selection from each folder, see :func:`select_shards`.
    """
    volumes = (
        Volume.of_shard(shar_dir, shard)
        for shar_dir in shar_dirs
        for shard in select_shards(shard_ids(shar_dir), shards)
    )
    return sum(volumes, Volume())


def predict_bytes(volume: Volume, output: Output, per_frame: float) -> int:
    """Return the predicted size of a field on disk in bytes, with its JSON files.

    Args:
      per_frame: bytes per stored frame, see
        :func:`icefall_kd.fields.codecs.bytes_per_frame`.
    """
    # A teacher rounds the frames of a cut up, by half a frame on average.
    frames = volume.seconds / output.frame_shift + volume.num_cuts / 2
    return int(
        frames * per_frame
        + volume.num_cuts * (_CUT + _CUT_STATE)
        + volume.num_shards * (_SHARD + _VALUE_STATE * output.dim)
    )


def check_disk(shar_dir: Pathlike, predicted: Mapping[str, int]) -> None:
    """Check that the disk can hold 1.1 times the predicted bytes.

    Args:
      shar_dir: folder on this disk; a URL is not checked.
      predicted: field -> predicted bytes.
    Raises:
      OSError: if the disk is too full; the message has the needed and the free bytes.
    """
    free = free_bytes(shar_dir)
    needed = int(_MARGIN * sum(predicted.values()))
    if free is not None and free < needed:
        parts = ", ".join(f"{f} {b / 1e6:.1f} MB" for f, b in predicted.items())
        raise OSError(
            f"{shar_dir}: {needed / 1e6:.1f} MB needed ({parts}, plus 10 %), "
            f"{free / 1e6:.1f} MB free. Nothing was written. Free some space, move the "
            "Shar to another disk, or give a --codec with fewer bytes per frame"
        )


def free_bytes(shar_dir: Pathlike) -> Optional[int]:
    """Return the free bytes of the disk that holds a folder; None for a URL."""
    return shutil.disk_usage(shar_dir).free if is_local(as_path(shar_dir)) else None


@dataclass(frozen=True)
class Speed:
    """Measured time of one process, in seconds per second of audio.

    Attributes:
      reading: time to read and decode the audio.
      teachers: name of a teacher -> time of its forward pass.
      codecs: (field, codec) -> time to encode frames and sum them up; None if not
        measured.
      seconds: duration of the audio of the measurement, in seconds.
    """

    reading: float
    teachers: Mapping[str, float]
    codecs: Mapping[tuple[str, str], Optional[float]]
    seconds: float


def parse_outputs(texts: Sequence[str]) -> dict[str, Output]:
    """Return field -> embedding output, parsed from NAME=VALUES@HZ.

    Raises:
      ValueError: if a text does not have this form.

    >>> parse_outputs(["wavlm_large=1024@50"])["wavlm_large"].frame_shift
    0.02
    """
    outputs = {}
    for text in texts:
        match = _DIMS.fullmatch(text)
        if match is None or float(match[3]) == 0:
            raise ValueError(
                f"--dims {text}: expected NAME=VALUES@HZ, for example "
                "wavlm_large=1024@50"
            )
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
    """Predict the disk space and the time of an extraction, for each codec.

    Args:
      outputs: field -> teacher's output.
      codecs: codecs of the embeddings to compare, for example ["fp16", "pq16"].
      free: free bytes on the disk; None if unknown.
      speed: measured speed; None omits the hours.
    Returns:
      {
          "hours_of_audio", "cuts", "shards", "free_bytes": numbers,
          "fields": list of {field, codec, dim, rate_hz, bytes_per_frame, bytes},
          "totals": {codec, bytes, needed_bytes, fits, hours} of each codec,
          "hours": {probed_s, reading, teachers, codecs} of one process (only with
                   ``speed``),
      }
    """
    specs = {
        (field, codec): codec_for_kind(output.kind, codec)
        for field, output in outputs.items()
        for codec in codecs
    }
    rows = {
        (field, spec): _predict_field(volume, field, outputs[field], spec)
        for (field, _), spec in specs.items()
    }
    totals = []
    for codec in codecs:
        size = sum(rows[field, specs[field, codec]]["bytes"] for field in outputs)
        needed = int(_MARGIN * size)
        total = {"codec": codec, "bytes": size, "needed_bytes": needed}
        fits = None if free is None else free >= needed
        totals.append({**total, "fits": fits, "hours": None})
    hours = volume.seconds / 3600
    result: dict[str, Any] = {
        "hours_of_audio": hours,
        "cuts": volume.num_cuts,
        "shards": volume.num_shards,
        "free_bytes": free,
        "fields": list(rows.values()),
        "totals": totals,
    }
    if speed is not None:
        result["hours"] = {
            "probed_s": speed.seconds,
            "reading": hours * speed.reading,
            "teachers": {name: hours * cost for name, cost in speed.teachers.items()},
            "codecs": {},
        }
        others = hours * (speed.reading + sum(speed.teachers.values()))
        for total in totals:
            codec = total["codec"]
            costs = [speed.codecs[field, specs[field, codec]] for field in outputs]
            encoding = None if None in costs else hours * sum(costs)
            result["hours"]["codecs"][codec] = encoding
            total["hours"] = others + (encoding or 0.0)
    return result


def _predict_field(
    volume: Volume, field: str, output: Output, codec: str
) -> dict[str, Any]:
    per_frame = bytes_per_frame(codec, output.dim)
    return {
        "field": field,
        "codec": codec,
        "dim": output.dim,
        "rate_hz": round(1 / output.frame_shift, 3),
        "bytes_per_frame": per_frame,
        "bytes": predict_bytes(volume, output, per_frame),
    }


def format_forecast(result: Mapping[str, Any]) -> str:
    """Return a forecast as a text table."""
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
    totals = result["totals"]
    rows += [["all", t["codec"], "", "", "", _gigabytes(t["bytes"])] for t in totals]
    title = "{hours_of_audio:,.1f} h of audio, {cuts:,} cuts, {shards:,} shards"
    lines = [title.format(**result), *_align([head, *rows], num_left=2)]
    if result["free_bytes"] is not None:
        lines += ["", f"free: {_gigabytes(result['free_bytes'])} GB"]
        lines += [
            f"{t['codec']} needs {_gigabytes(t['needed_bytes'])} GB, margin included: "
            f"{'enough space' if t['fits'] else 'NOT ENOUGH SPACE'}"
            for t in totals
        ]
    if "hours" in result:
        hours = result["hours"]
        rows = [["reading audio", f"{hours['reading']:,.3f}"]]
        rows += [[name, f"{h:,.3f}"] for name, h in hours["teachers"].items()]
        for codec, h in hours["codecs"].items():
            rows.append([f"codec {codec}", "not timed" if h is None else f"{h:,.3f}"])
        rows += [[f"all, {t['codec']}", f"{t['hours']:,.3f}"] for t in totals]
        probed = f"measured on {hours['probed_s']:.0f} s of audio"
        lines += ["", f"hours of one process ({probed})", *_align(rows, num_left=1)]
    return "\n".join(lines)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.{3 if count < 1e9 else 1}f}"


def _align(rows: Sequence[Sequence[str]], num_left: int) -> list[str]:
    """Return rows as lines; the first ``num_left`` columns are flush left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            text.ljust(width) if n < num_left else text.rjust(width)
            for n, (text, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
