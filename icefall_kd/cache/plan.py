"""How much room a field takes, told before it is written."""

import shutil
from typing import Iterable, List, Mapping

from icefall_kd.cache.codecs import Codec
from icefall_kd.io import Pathlike, as_path, is_local
from icefall_kd.teachers.protocol import Output

_TAR_OVERHEAD = 2560  # bytes a cut: two tar headers, the array's header, its manifest


def predict_bytes(keys: Iterable[List[list]], output: Output, codec: Codec) -> int:
    """Return the bytes that the arrays of cuts will take.

    Args:
      keys: of the cuts of each shard, see :func:`icefall_kd.cache.join.read_keys`.
    """
    per_frame = codec.bytes_per_frame(output.dim)
    cuts = [key for shard in keys for key in shard]
    frames = sum(key[3] for key in cuts) / output.frame_shift
    return int(frames * per_frame + len(cuts) * _TAR_OVERHEAD)


def check_disk(shar_dir: Pathlike, predicted: Mapping[str, int]) -> None:
    """Refuse to start when the disk cannot hold 1.1 times the prediction.

    A store behind a URL does not tell its room and is not asked.

    Args:
      predicted: bytes of each field.
    Raises:
      OSError: naming the bytes needed and free.
    """
    if not is_local(as_path(shar_dir)):
        return
    needed = int(1.1 * sum(predicted.values()))
    free = shutil.disk_usage(shar_dir).free
    if free < needed:
        parts = ", ".join(f"{f} {b / 1e6:.1f} MB" for f, b in predicted.items())
        raise OSError(
            f"{shar_dir}: {needed / 1e6:.1f} MB are needed ({parts}, and a tenth), "
            f"{free / 1e6:.1f} MB are free; nothing was written. Make room, put the "
            "Shar elsewhere, or take a codec with fewer bytes a frame"
        )
