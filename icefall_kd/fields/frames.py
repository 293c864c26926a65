"""Stored frames that a cut points to in a file, instead of holding them in memory.

A cut that waits in a bucket of the sampler stays light; its frames are read once,
directly into the batch.
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

_NPY = re.compile(  # a header that np.save writes: dtype, then shape
    rb"\x93NUMPY\x01\x00..\{'descr': '([<|]\w\d+)', 'fortran_order': False, "
    rb"'shape': \(([\d, ]+)\), \} *\n",
    re.DOTALL,
)


class Frames(NamedTuple):
    """Frames in a file or in memory; the first axis is time.

    Attributes:
      path, offset: file, and byte of the first frame; unused with ``array``.
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
        """Copy the frames to ``out``, a contiguous array of their shape and dtype.

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
    """Let lhotse read :class:`Frames`.

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
    """Return the frames of a lhotse array; frames in a file are not read.

    Raises:
      ValueError, EOFError, OSError: if the array is stored elsewhere and cannot be
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


def prefetch(array: Array) -> None:
    """Ask the operating system to read the frames of an array ahead, if it can."""
    if array.storage_type != FramesInFile.name or not hasattr(os, "posix_fadvise"):
        return
    frames = locate_frames(array)
    size = frames.dtype.itemsize * math.prod(frames.shape)
    with contextlib.suppress(OSError), io.FileIO(frames.path) as f:
        os.posix_fadvise(f.fileno(), frames.offset, size, os.POSIX_FADV_WILLNEED)


def point_to_file(array: Array, path: str, offset: int, size: int, head: bytes) -> bool:
    """Point ``array`` to a ``.npy`` within a file, if its header is a plain one.

    Args:
      offset, size: of the ``.npy`` in the file ``path``, in bytes.
      head: first 128 bytes of the ``.npy``.
    Returns:
      False if the header is another one; ``array`` is then unchanged.
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
    """Return dtype, shape and length of a plain ``.npy`` header, None for another.

    np.load evaluates the header as a Python expression, which takes as long as
    everything else that is done with the array of a short cut.
    """
    match = _NPY.match(data)
    if match is None:
        return None
    shape = [int(n) for n in match[2].split(b",") if n.strip()]
    return match[1].decode(), shape, match.end()
