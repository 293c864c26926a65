"""Writes one shard of a field: whole or absent, with its statistics."""

from pathlib import Path
from typing import Any, Dict, Iterable, List, Tuple, Union

import numpy as np
from lhotse.array import Array, TemporalArray
from lhotse.shar.writers import ArrayTarWriter

from icefall_kd.cache.codecs import get_codec
from icefall_kd.cache.field import (
    ShardState,
    cuts_path,
    save,
    state_path,
    tar_path,
)
from icefall_kd.io import sha256_file, write_aside


def write_shard(
    shar_dir: Union[str, Path],
    field: str,
    shard: str,
    keys: List[list],
    arrays: Iterable[Tuple[str, np.ndarray]],
    *,
    frame_shift: float,
    codec: str,
    fingerprint: Dict[str, Any],
) -> ShardState:
    """Write the arrays of one shard, then the state that declares it whole.

    The bytes depend on the arrays alone: no time, no user, no path enters the tar.

    Args:
      keys:   of the shard's cuts, see :func:`icefall_kd.cache.join.read_keys`.
      arrays: (cut id, (T, D) float32) in the order of the keys.
    Returns:
      what was written to ``<field>.<shard>.json``.
    Raises:
      ValueError: if the arrays are not those of the cuts, one by one and in order.
    """
    path = tar_path(shar_dir, field, shard)
    state_path(shar_dir, field, shard).unlink(missing_ok=True)
    with write_aside(path) as aside:
        num_frames, total, squares = _write_tar(aside, keys, arrays, frame_shift, codec)
    state = ShardState(
        tar=path.name,
        sha256=sha256_file(path),
        bytes=path.stat().st_size,
        num_cuts=len(keys),
        num_frames=num_frames,
        sum=total.tolist(),
        sum_squares=squares.tolist(),
        cuts_sha256=sha256_file(cuts_path(shar_dir, shard)),
        keys=keys,
        fingerprint=fingerprint,
        codec=codec,
    )
    save(state, state_path(shar_dir, field, shard))
    return state


def _write_tar(
    path: Path,
    keys: List[list],
    arrays: Iterable[Tuple[str, np.ndarray]],
    frame_shift: float,
    codec: str,
) -> Tuple[int, np.ndarray, np.ndarray]:
    """Return the frames written, their (D,) sum and their (D,) sum of squares."""
    code = get_codec(codec)
    total, squares = np.zeros(0), np.zeros(0)
    num_frames = written = 0
    with ArrayTarWriter(str(path), shard_size=None) as tar:
        for cut_id, x in arrays:
            if written >= len(keys) or cut_id != keys[written][0]:
                wanted = [k[0] for k in keys[written : written + 1]] or "no more"
                raise ValueError(
                    f"{path}: array {written} is of cut '{cut_id}', expected {wanted}"
                )
            stored = code.encode(x)
            tar.write(cut_id, stored, _manifest(stored, frame_shift))
            # Statistics are those of what a reader will get.
            back = code.decode(stored).astype(np.float64)
            total = back.sum(axis=0) + (total if written else 0.0)
            squares = np.square(back).sum(axis=0) + (squares if written else 0.0)
            num_frames += len(x)
            written += 1
    if written != len(keys):
        raise ValueError(f"{path}: {written} arrays for {len(keys)} cuts")
    return num_frames, total, squares


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
