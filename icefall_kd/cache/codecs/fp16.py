"""Codec ``fp16``: half precision."""

import numpy as np
from torch import Tensor

from icefall_kd.cache.codecs.base import Codec


class Fp16(Codec):
    """Half precision: 2 bytes a value, relative error below 5e-4."""

    name = "fp16"

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

    def decode_tensor(self, stored: Tensor) -> Tensor:
        """See :class:`Codec`."""
        return stored.float()

    def bytes_per_frame(self, dim: int) -> float:
        """See :class:`Codec`."""
        return 2.0 * dim
