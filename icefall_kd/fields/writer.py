"""Statistics of a field's frames: pooled from its shards, and what stands out.

Writes one shard of a field: whole or absent, with its statistics.
"""

import contextlib
import errno
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
from lhotse.array import Array, TemporalArray
from lhotse.shar.writers import ArrayTarWriter

from icefall_kd.core.files import explain_failed_write, sha256_file, write_atomically
from icefall_kd.fields.codecs import Codec
from icefall_kd.fields.format import (
    FieldInfo,
    ShardState,
    cuts_path,
    save,
    staged_path,
    state_path,
)

OUTLIER = 10.0  # times the median dimension's root mean square

Sums = tuple[int, np.ndarray, np.ndarray]  # frames; sum and sum of squares, (D,)


@dataclass(frozen=True)
class Outstanding:
    """Dimensions of an embedding that stand out, the most extreme first.

    Attributes:
      largest_mean, largest_std, smallest_std: a few dimensions each.
      outliers: whose root mean square is above 10 times the median one.
      energy:   share of the mean squared norm that lies in the outliers.
    """

    largest_mean: list[int]
    largest_std: list[int]
    smallest_std: list[int]
    outliers: list[int]
    energy: float


def pool(sums: Sequence[Sums]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the mean square of each dimension over all frames."""
    frames = sum(n for n, _, _ in sums)
    total = np.sum([s for _, s, _ in sums], axis=0)
    squares = np.sum([q for _, _, q in sums], axis=0)
    return total / frames, squares / frames


def state_sums(state: ShardState) -> Sums:
    """Return the sums that a shard tells of itself."""
    return state.num_frames, np.array(state.sum), np.array(state.sum_squares)


def content_sha256(states: Sequence[ShardState]) -> str:
    """Return the checksum over those of all shards, in order."""
    return hashlib.sha256("".join(s.sha256 for s in states).encode()).hexdigest()


def outstanding(info: FieldInfo, count: int = 5) -> Outstanding:
    """Return which dimensions of an embedding stand out.

    Whisper and its like have a few that are a hundred times larger than the rest: a
    mean squared error hears little else.
    """
    mean, std = np.array(info.mean), np.array(info.std)
    square = mean**2 + std**2
    rms = np.sqrt(square)
    by_rms = np.argsort(-rms, kind="stable")
    outliers = [int(d) for d in by_rms if rms[d] > OUTLIER * np.median(rms)]
    by_mean = np.argsort(-np.abs(mean), kind="stable")
    by_std = np.argsort(-std, kind="stable")
    return Outstanding(
        largest_mean=by_mean[:count].tolist(),
        largest_std=by_std[:count].tolist(),
        smallest_std=by_std[::-1][:count].tolist(),
        outliers=outliers,
        energy=float(square[outliers].sum() / max(square.sum(), 1e-30)),
    )


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MAKE_ROOM = (
    "the shards that are finished stay valid: make room and run the same command again"
)


class ShardWriter:
    """Takes the arrays of one shard, cut by cut; see :func:`write_shard`.

    Attributes:
      state: what was written, once the shard is whole.
    """

    def __init__(
        self,
        path: Path,
        tar: ArrayTarWriter,
        keys: list[list],
        frame_shift: float,
        codec: Codec,
    ) -> None:
        self.state: Optional[ShardState] = None
        self.num_frames = 0
        self.sum = self.sum_squares = np.zeros(0)
        self._path, self._tar, self._keys = path, tar, keys
        self._frame_shift, self._codec = frame_shift, codec
        self._written = 0

    def write(self, cut_id: str, x: np.ndarray) -> None:
        """Write the array of the next cut, (T, W) float32.

        Raises:
          ValueError: if it is not this cut's turn, or the codec cannot hold a value.
          OSError: if there is no room; the message names the file.
        """
        n = self._written
        if n >= len(self._keys) or cut_id != self._keys[n][0]:
            wanted = [k[0] for k in self._keys[n : n + 1]] or "no more"
            raise ValueError(
                f"{self._path}: array {n} is of cut '{cut_id}', expected {wanted}"
            )
        try:
            stored = self._codec.encode(x)
        except ValueError as e:
            raise ValueError(f"{self._path}: cut '{cut_id}': {e}") from e
        with explain_failed_write(self._path, _MAKE_ROOM):
            self._tar.write(cut_id, stored, _manifest(stored, self._frame_shift))
        total, squares = moments(self._codec, stored)
        self.sum = total + (self.sum if n else 0.0)
        self.sum_squares = squares + (self.sum_squares if n else 0.0)
        self.num_frames += len(x)
        self._written += 1

    def check_complete(self) -> None:
        """Refuse an end before the last cut.

        Raises:
          ValueError: with the numbers of arrays and cuts.
        """
        if self._written != len(self._keys):
            raise ValueError(
                f"{self._path}: {self._written} arrays for {len(self._keys)} cuts"
            )


def moments(codec: Codec, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sum and sum of squares, (W,) float64, of what a reader will get."""
    back = codec.decode(stored).astype(np.float64)
    return back.sum(axis=0), np.square(back).sum(axis=0)


@contextlib.contextmanager
def write_shard(
    shar_dir: Union[str, Path],
    field: str,
    shard: str,
    keys: list[list],
    *,
    frame_shift: float,
    codec: Codec,
    fingerprint: dict[str, Any],
) -> Iterator[ShardWriter]:
    """Write a shard's arrays in the block, then the state that declares it whole.

    The bytes depend on the arrays alone: no time, no user, no path enters the tar.
    When the block raises, nothing of the shard is left.

    Args:
      keys: of the shard's cuts, see :func:`icefall_kd.fields.join.read_keys`; their
        arrays must be written in this order.
    Raises:
      ValueError: if the arrays are not those of the cuts, one by one and in order.
    """
    path = staged_path(shar_dir, field, shard)
    with _naming_full_disk(path):
        state_path(shar_dir, field, shard).unlink(missing_ok=True)
        with write_atomically(path) as aside:
            with ArrayTarWriter(str(aside), shard_size=None) as tar:
                writer = ShardWriter(path, tar, keys, frame_shift, codec)
                yield writer
                writer.check_complete()
            sha256, size = sha256_file(aside), aside.stat().st_size
        writer.state = ShardState(
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
        save(writer.state, state_path(shar_dir, field, shard))


@contextlib.contextmanager
def _naming_full_disk(path: Path) -> Iterator[None]:
    """Give an error that only a full disk makes the file's name and the remedy.

    Closing a file writes too, and its error would hide the one that was named.
    """
    try:
        yield
    except OSError as e:
        if e.errno not in _FULL:
            raise
        raise OSError(f"{path}: could not be written ({e}); {_MAKE_ROOM}") from e


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
        start=0.0,  # a Shar's cuts start at 0: it holds no audio before them
    )
