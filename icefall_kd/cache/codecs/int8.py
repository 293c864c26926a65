"""Codec ``int8``: one byte a value, with a scale for each dimension.

Whisper and its like have a few dimensions that are a hundred times larger than the
rest; one scale for all would leave the others nothing.
"""

from typing import Any, Optional

import numpy as np
from torch import Tensor

from icefall_kd.cache.codecs.base import Codec, check_dim, check_finite

_LEVELS = 127
_OUTSIDE = 1e-4  # share of the values of a dimension that may be clipped


class Int8(Codec):
    """x is about ``mean + scale * q`` with q in -127 .. 127.

    State: ``mean`` and ``scale``, (W,) float32.
    """

    name = "int8"
    trained = True

    @classmethod
    def train(
        cls, size: Optional[int], frames: np.ndarray, seed: int, **options: Any
    ) -> dict[str, np.ndarray]:
        """Learn the middle of each dimension and its largest distance from there.

        Distances beyond all but 1e-4 of the frames are clipped, so that no single
        frame sets the scale.
        """
        mean = frames.mean(axis=0, dtype=np.float64)
        reach = np.quantile(np.abs(frames - mean), 1 - _OUTSIDE, axis=0)
        # A dimension that never moves must not become a division by zero.
        scale = np.maximum(reach, 1e-8) / _LEVELS
        return {"mean": mean.astype(np.float32), "scale": scale.astype(np.float32)}

    def encode(self, x: np.ndarray) -> np.ndarray:
        """See :class:`Codec`.

        Raises:
          ValueError: if a value is not finite, or the dimension is another.
        """
        check_finite(x, self.spec)
        check_dim(x, len(self._state["mean"]), self.spec)
        q = np.rint((x - self._state["mean"]) / self._state["scale"])
        return np.clip(q, -_LEVELS, _LEVELS).astype(np.int8)

    def decode_tensor(self, stored: Tensor) -> Tensor:
        """See :class:`Codec`."""
        constants = self.constants_on(stored.device)
        x = stored.float()
        x *= constants["scale"]
        x += constants["mean"]
        return x

    def bytes_per_frame(self, dim: int) -> float:
        """See :class:`Codec`."""
        return float(dim)
