"""Frames of a field that stay in their file until a batch needs them.

A cut holds only the position of its frames.  It needs little memory while it waits in a
bucket of the sampler, and the loader reads its frames directly into the batch.
"""

import contextlib
import io
import math
import os
import re
from typing import NamedTuple, Optional

import numpy as np
from lhotse.array import Array
from lhotse.features.io import FeaturesReader, register_reader

_NPY = re.compile(  # header of np.save; groups: dtype, shape
    rb"\x93NUMPY\x01\x00..\{'descr': '([<|]\w\d+)', 'fortran_order': False, "
    rb"'shape': \(([\d, ]+)\), \} *\n",
    re.DOTALL,
)


class Frames(NamedTuple):
    """Frames in a file or in memory; the first axis is time.

    Attributes:
      dtype, shape: dtype and shape of the frames.
      path, offset: file, and position of the first frame in bytes; unused with
        ``array``.
      array: the frames, if they are in memory.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    path: str = ""
    offset: int = 0
    array: Optional[np.ndarray] = None

    def part(self, first: int, count: int) -> "Frames":
        """Return up to ``count`` frames from ``first`` on."""
        if self.array is not None:
            array = self.array[first : first + count]
            return Frames(self.dtype, array.shape, array=array)
        total, *rest = self.shape
        offset = self.offset + first * self.dtype.itemsize * math.prod(rest)
        shape = (max(0, min(count, total - first)), *rest)
        return Frames(self.dtype, shape, self.path, offset)

    def read(self) -> np.ndarray:
        """Return the frames; raises as :meth:`read_into`."""
        out = np.empty(self.shape, self.dtype)
        self.read_into(out)
        return out

    def read_into(self, out: np.ndarray) -> None:
        """Copy the frames to ``out``, a contiguous array of the same shape and dtype.

        Raises:
          OSError, EOFError: if the file cannot be read or is too short.
        """
        if self.array is not None:
            out[...] = self.array
            return
        with io.FileIO(self.path) as f:
            f.seek(self.offset)
            if f.readinto(out) != out.nbytes:
                raise EOFError(f"{self.path} ends within the frames")


@register_reader
class FramesInFile(FeaturesReader):
    """Reader of :class:`Frames` for lhotse.

    The storage key of an array is "<offset> <dtype> <size of each axis>".
    """

    name = "frames_in_file"

    def __init__(self, storage_path: str) -> None:
        self._path = storage_path

    def locate(self, key: str) -> Frames:
        """Return the frames of a storage key."""
        offset, dtype, *shape = key.split()
        return Frames(np.dtype(dtype), tuple(map(int, shape)), self._path, int(offset))

    def read(
        self,
        key: str,
        left_offset_frames: int = 0,
        right_offset_frames: Optional[int] = None,
    ) -> np.ndarray:
        """Return the frames from ``left_offset_frames`` to ``right_offset_frames``."""
        frames = self.locate(key)
        first, last, _ = slice(left_offset_frames, right_offset_frames).indices(
            frames.shape[0]
        )
        return frames.part(first, last - first).read()


def locate_frames(array: Array) -> Frames:
    """Return the frames of a lhotse array, without reading those in a file.

    Raises:
      ValueError, EOFError, OSError: if the array has another storage type and cannot be
        loaded.
    """
    if array.storage_type == FramesInFile.name:
        return FramesInFile(array.storage_path).locate(array.storage_key)
    data = array.storage_key
    header = _parse_npy_header(data) if isinstance(data, bytes) else None
    if header is None:
        frames = array.load()
    else:
        dtype, shape, start = header
        frames = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return Frames(frames.dtype, frames.shape, array=frames)


def prefetch_frames(array: Array) -> None:
    """Let the operating system read the frames of an array in advance, if it can."""
    if array.storage_type != FramesInFile.name or not hasattr(os, "posix_fadvise"):
        return
    frames = locate_frames(array)
    size = frames.dtype.itemsize * math.prod(frames.shape)
    with contextlib.suppress(OSError), io.FileIO(frames.path) as f:
        os.posix_fadvise(f.fileno(), frames.offset, size, os.POSIX_FADV_WILLNEED)


def point_to_file(array: Array, path: str, offset: int, size: int, head: bytes) -> bool:
    """Point ``array`` to a ``.npy`` within a file.

    Args:
      path: file that contains the ``.npy``, for example a tar.
      offset, size: position and size of the ``.npy`` in the file, in bytes.
      head: first 128 bytes of the ``.npy``.
    Returns:
      False if the header is not as np.save writes it; ``array`` is then unchanged.
    """
    header = _parse_npy_header(head)
    if header is None:
        return False
    dtype, shape, start = header
    if start + math.prod(shape) * np.dtype(dtype).itemsize != size:
        return False
    array.storage_type, array.storage_path = FramesInFile.name, path
    array.storage_key = f"{offset + start} {dtype} {' '.join(map(str, shape))}"
    array.shape = shape
    return True


def _parse_npy_header(data: bytes) -> Optional[tuple[str, list[int], int]]:
    """Return dtype, shape and length of a ``.npy`` header of np.save; else None.

    np.load evaluates the header as a Python expression.  For a short cut, this takes as
    long as all other work on its array.
    """
    match = _NPY.match(data)
    if match is None:
        return None
    shape = [int(n) for n in match[2].split(b",") if n.strip()]
    return match[1].decode(), shape, match.end()
