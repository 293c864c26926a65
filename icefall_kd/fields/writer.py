"""Write one shard of a field, and compute the statistics of its frames."""

import contextlib
import errno
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.array import Array, TemporalArray
from lhotse.shar.writers import ArrayTarWriter

from icefall_kd.core.files import Pathlike, sha256_file, write_atomically
from icefall_kd.fields.codecs import Codec
from icefall_kd.fields.format import (
    ShardState,
    cuts_path,
    save,
    staged_path,
    state_path,
)

Sums = tuple[int, np.ndarray, np.ndarray]  # frames; sum and sum of squares, (D,)

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class ShardWriter:
    """Write the arrays of one shard, cut by cut; see :func:`write_shard`.

    Attributes:
      num_arrays, num_frames: numbers of arrays and frames written so far.
      sum, sum_squares: sums over the decoded frames, (W,) float64.
    """

    def __init__(
        self,
        path: Path,
        tar: ArrayTarWriter,
        keys: list[list],
        frame_shift: float,
        codec: Codec,
    ) -> None:
        """Store the parts; arguments as :func:`write_shard`.

        Args:
          path: final path of the tar, for messages.
          tar: writer of the temporary file.
        """
        self.num_arrays = self.num_frames = 0
        self.sum = self.sum_squares = np.zeros(())
        self._path, self._tar, self._keys = path, tar, keys
        self._frame_shift, self._codec = frame_shift, codec

    def write(self, cut_id: str, x: np.ndarray) -> None:
        """Write the array of the next cut, (T, W) float32.

        Raises:
          ValueError: if another cut is next, or the codec cannot store a value.
        """
        n = self.num_arrays
        if n >= len(self._keys) or cut_id != self._keys[n][0]:
            expected = f"'{self._keys[n][0]}'" if n < len(self._keys) else "no more"
            raise ValueError(
                f"{self._path}: array {n} is of cut '{cut_id}', expected {expected}; "
                "write the arrays in the order of the cuts"
            )
        try:
            stored = self._codec.encode(x)
        except ValueError as e:
            raise ValueError(f"{self._path}: cut '{cut_id}': {e}") from e
        self._tar.write(cut_id, stored, _manifest(stored, self._frame_shift))
        total, squares = sum_frames(self._codec, stored)
        self.sum = self.sum + total
        self.sum_squares = self.sum_squares + squares
        self.num_frames += len(x)
        self.num_arrays += 1


@contextlib.contextmanager
def write_shard(
    shar_dir: Pathlike,
    field: str,
    shard: str,
    keys: list[list],
    *,
    frame_shift: float,
    codec: Codec,
    fingerprint: dict[str, Any],
) -> Iterator[ShardWriter]:
    """Write the arrays of a shard in a with block, then its state.

    The state marks the shard as complete.  The bytes depend only on the arrays: the tar
    contains no time, user or path.  If the block raises, no file of the shard remains.

    Args:
      keys: keys of the shard's cuts, see :func:`icefall_kd.fields.join.read_keys`; the
        block writes the arrays in this order.
      frame_shift: time between two frames in seconds.
      fingerprint: fingerprint of the teacher's output and the codec.
    Yields:
      a writer for the arrays.
    Raises:
      ValueError: if the arrays are not those of the cuts, in order.
      OSError: if the disk is full; the message names the file.
    """
    path = staged_path(shar_dir, field, shard)
    with _name_full_disk(path):
        state_path(shar_dir, field, shard).unlink(missing_ok=True)
        with write_atomically(path) as temporary:
            with ArrayTarWriter(str(temporary), shard_size=None) as tar:
                writer = ShardWriter(path, tar, keys, frame_shift, codec)
                yield writer
            if writer.num_arrays != len(keys):
                raise ValueError(
                    f"{path}: {writer.num_arrays} arrays for {len(keys)} cuts; write "
                    "one array per cut"
                )
            sha256, size = sha256_file(temporary), temporary.stat().st_size
        state = ShardState(
            tar=path.name,
            sha256=sha256,
            bytes=size,
            num_cuts=len(keys),
            num_frames=writer.num_frames,
            sum=writer.sum.tolist(),
            sum_squares=writer.sum_squares.tolist(),
            cuts_sha256=sha256_file(cuts_path(shar_dir, shard)),
            keys=keys,
            fingerprint=fingerprint,
            codec=codec.spec,
        )
        save(state, state_path(shar_dir, field, shard))


@contextlib.contextmanager
def _name_full_disk(path: Path) -> Iterator[None]:
    """Add the file and the remedy to the error of a full or broken disk."""
    try:
        yield
    except OSError as e:
        if e.errno not in _DISK_ERRORS:
            raise
        raise OSError(
            f"{path}: could not be written ({e}). Finished shards are kept. Free some "
            "space and run the same command again"
        ) from e


def _manifest(stored: np.ndarray, frame_shift: float) -> TemporalArray:
    return TemporalArray(
        array=Array(
            storage_type="shar",
            storage_path="",
            storage_key="",
            shape=list(stored.shape),
        ),
        temporal_dim=0,
        frame_shift=frame_shift,
        start=0.0,  # the audio of each cut is a separate recording
    )


def sum_frames(codec: Codec, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and the sum of squares, (W,) float64, of the decoded frames."""
    x = codec.decode(stored).astype(np.float64)
    return x.sum(axis=0), np.square(x).sum(axis=0)


def sums_of_state(state: ShardState) -> Sums:
    """Return the number of frames and the sums that a shard's state stores."""
    return state.num_frames, np.array(state.sum), np.array(state.sum_squares)


def mean_and_mean_square(sums: Sequence[Sums]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the mean square of the frames, (D,) each.

    Args:
      sums: sums of each shard.
    """
    frames = sum(n for n, _, _ in sums)
    total = np.sum([s for _, s, _ in sums], axis=0)
    squares = np.sum([q for _, _, q in sums], axis=0)
    return total / frames, squares / frames


def content_sha256(tar_sha256s: Sequence[str]) -> str:
    """Return the SHA-256 over the checksums of a field's tars, in order."""
    return hashlib.sha256("".join(tar_sha256s).encode()).hexdigest()
