"""Codec ``fp16``: half precision.

Codec ``int8``: one byte a value, with a scale for each dimension.

Whisper and its like have a few dimensions that are a hundred times larger than the
rest; one scale for all would leave the others nothing.

Codec ``topk``: token ids and probabilities of a frame, 2 bytes each.
"""

from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

from icefall_kd.fields.codecs.base import Codec, check_dim, check_finite


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


class TopK(Codec):
    """Ids as uint16, log-probabilities and the tail's mass in half precision.

    Its frames are those of :mod:`icefall_kd.core.frames`: of W values the first W // 2
    are ids.  A stored frame is the bytes of these as uint16 and of the others as
    float16, little-endian.
    """

    name = "topk"
    kinds = ("ctc", "path")

    def encode(self, x: np.ndarray) -> np.ndarray:
        """See :class:`Codec`.

        Raises:
          ValueError: if a value is not finite, or an id does not fit 16 bits.
        """
        check_finite(x, self.spec)
        k = x.shape[1] // 2
        ids, values = x[:, :k], x[:, k:]
        if ids.size and not (0 <= ids.min() and ids.max() < 1 << 16):
            raise ValueError(f"token ids {ids.min()} .. {ids.max()} do not fit 16 bits")
        return np.concatenate(
            [
                np.ascontiguousarray(ids.astype("<u2")).view(np.uint8),
                np.ascontiguousarray(values.astype("<f2")).view(np.uint8),
            ],
            axis=1,
        )

    def decode_tensor(self, stored: Tensor) -> Tensor:
        """See :class:`Codec`."""
        # Half of the values, rounded down, are ids of 2 bytes each.
        pairs = stored.unflatten(-1, (-1, 2))
        ids, values = pairs.tensor_split([stored.size(-1) // 4], dim=-2)
        ids = ids[..., 0].float() + 256.0 * ids[..., 1].float()
        values = values.flatten(-2).contiguous().view(torch.float16).float()
        return torch.cat([ids, values], dim=-1)

    def bytes_per_frame(self, dim: int) -> float:
        """See :class:`Codec`."""
        return 2.0 * dim
