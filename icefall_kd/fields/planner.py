"""Which shards of a Shar folder a process makes.

How much room fields take, told before they are written.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

from icefall_kd.core.files import Pathlike, as_path, is_local
from icefall_kd.fields.format import cuts_path, shard_ids
from icefall_kd.fields.join import read_keys
from icefall_kd.teachers.protocol import Output


def select_shards(ids: Sequence[str], selection: Optional[str]) -> list[str]:
    """Return the shards that ``selection`` names, in order and each once.

    Args:
      ids:       sorted numbers of all shards.
      selection: places among ``ids`` from 0 on, with commas between: one place, or
                 START:END[:STEP] as Python has it, the end exclusive.  None is all.
    Raises:
      ValueError: if a part cannot be read, or nothing is selected.

    >>> select_shards(["000000", "000001", "000002", "000003"], "::2,3")
    ['000000', '000002', '000003']
    """
    if selection is None:
        return list(ids)
    places = set()
    for part in selection.split(","):
        places.update(_places(part.strip(), len(ids), selection))
    if not places:
        raise ValueError(
            f"--shards {selection} selects none of the {len(ids)} shards 0:{len(ids)}"
        )
    return [ids[n] for n in sorted(places)]


def _places(part: str, count: int, selection: str) -> range:
    try:
        numbers = [int(text) if text else None for text in part.split(":")]
        if len(numbers) > 1:
            return range(count)[slice(*numbers)]
        place = range(count).index(numbers[0])
    except (TypeError, ValueError) as e:
        raise ValueError(
            f"--shards {selection}: cannot take '{part}' of the {count} shards; give "
            "places such as 0:100, ::4 or 3,7,10:20, counted from 0"
        ) from e
    return range(place, place + 1)


# Bytes that the forms of the files add to the frames.
_CUT = 512 + 128 + 256 + 1024  # tar header, array's header, half a block; its manifest
_CUT_STATE = 220  # a cut's keys as indented JSON
_SHARD = 1024 + 10240 // 2  # end of a tar, filled up to its record
_VALUE_STATE = 2 * 24  # a dimension's two sums as JSON
SHARD_SIZE = 1000  # cuts a shard, where it is not known


@dataclass(frozen=True)
class Volume:
    """How much audio there is.

    Attributes:
      num_cuts: that it is cut into.
      seconds: of all of them.
      num_shards: that they lie in.
    """

    num_cuts: int
    seconds: float
    num_shards: int

    @classmethod
    def of_cuts(cls, keys: list[list]) -> "Volume":
        """Return that of one shard; see :func:`icefall_kd.fields.join.read_keys`."""
        return cls(len(keys), sum(key[3] for key in keys), 1)

    @classmethod
    def of_corpus(cls, hours: float, cut_duration: float) -> "Volume":
        """Return that of a corpus that is not here.

        Args:
          cut_duration: mean of its cuts, in s.
        """
        num_cuts = max(1, round(hours * 3600 / cut_duration))
        return cls(num_cuts, hours * 3600, -(-num_cuts // SHARD_SIZE))

    @classmethod
    def sum(cls, volumes: Iterable["Volume"]) -> "Volume":
        """Return several together."""
        each = list(volumes)
        return cls(
            sum(v.num_cuts for v in each),
            sum(v.seconds for v in each),
            sum(v.num_shards for v in each),
        )


def volume_of(shar_dirs: Sequence[Pathlike], shards: Optional[str] = None) -> Volume:
    """Return how much audio there is in Shar folders.

    Args:
      shards: only these of each, see :func:`icefall_kd.fields.planner.select_shards`.
    """
    return Volume.sum(
        Volume.of_cuts(read_keys(cuts_path(shar_dir, shard)))
        for shar_dir in shar_dirs
        for shard in select_shards(shard_ids(shar_dir), shards)
    )


def predict_bytes(volume: Volume, output: Output, per_frame: float) -> int:
    """Return the bytes that a field will take, its states included.

    Args:
      per_frame: bytes of a stored frame, see
        :func:`icefall_kd.fields.codecs.bytes_per_frame`.
    """
    # A cut's last frame is a part of one, on average half.
    frames = volume.seconds / output.frame_shift + volume.num_cuts / 2
    return int(
        frames * per_frame
        + volume.num_cuts * (_CUT + _CUT_STATE)
        + volume.num_shards * (_SHARD + _VALUE_STATE * output.dim)
    )


def check_disk(shar_dir: Pathlike, predicted: Mapping[str, int]) -> None:
    """Refuse to start when the disk cannot hold 1.1 times the prediction.

    A store behind a URL does not tell its room and is not asked.

    Args:
      predicted: bytes of each field.
    Raises:
      OSError: naming the bytes needed and free.
    """
    free = free_bytes(shar_dir)
    needed = with_margin(sum(predicted.values()))
    if free is not None and free < needed:
        parts = ", ".join(f"{f} {b / 1e6:.1f} MB" for f, b in predicted.items())
        raise OSError(
            f"{shar_dir}: {needed / 1e6:.1f} MB are needed ({parts}, and a tenth), "
            f"{free / 1e6:.1f} MB are free; nothing was written. Make room, put the "
            "Shar elsewhere, or take a codec with fewer bytes a frame"
        )


def with_margin(predicted: int) -> int:
    """Return the free bytes without which an extraction does not start."""
    return int(1.1 * predicted)


def free_bytes(shar_dir: Pathlike) -> Optional[int]:
    """Return the bytes free where a folder lies; None where nobody can tell."""
    if not is_local(as_path(shar_dir)):
        return None
    return shutil.disk_usage(shar_dir).free
