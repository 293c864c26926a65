"""How a field's arrays are stored.  A codec is a pair of functions and a size."""

from typing import Dict, Protocol

import numpy as np


class Codec(Protocol):
    """Turns embeddings into what is stored, and back."""

    def encode(self, x: np.ndarray) -> np.ndarray:
        """(T, D) float32 -> the stored array; its first axis is time."""
        ...

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """The stored array, or a slice of it in time -> (T, D) float32."""
        ...

    def bytes_per_frame(self, dim: int) -> float:
        """Bytes that one frame of ``dim`` values takes."""
        ...


class Fp16:
    """Half precision: 2 bytes a value, relative error below 5e-4."""

    def encode(self, x: np.ndarray) -> np.ndarray:
        """See :class:`Codec`.

        Raises:
          ValueError: if a value is not finite or beyond half precision's 65504.
        """
        with np.errstate(over="ignore"):  # found and told below
            stored = x.astype(np.float16)
        if not np.isfinite(stored).all():
            raise ValueError(
                "the teacher's output holds a value that is not finite, or beyond "
                f"65504 (largest {np.abs(x).max()}), which fp16 cannot store"
            )
        return stored

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """See :class:`Codec`."""
        return stored.astype(np.float32)

    def bytes_per_frame(self, dim: int) -> float:
        """See :class:`Codec`."""
        return 2.0 * dim


CODECS: Dict[str, Codec] = {"fp16": Fp16()}


def get_codec(name: str) -> Codec:
    """Return the codec ``name``.

    Raises:
      ValueError: if there is none; the message lists those that there are.
    """
    if name not in CODECS:
        raise ValueError(f"unknown codec '{name}'; known are {sorted(CODECS)}")
    return CODECS[name]
