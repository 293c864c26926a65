"""Codecs without an encoder package: ``fp16``, ``int8`` and ``topk``."""

from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

from icefall_kd.fields.codecs.base import Codec

_LEVELS = 127
_CLIPPED = 1e-4  # largest share of a dimension's values that int8 clips


class Fp16(Codec):
    """Half precision: 2 bytes per value, relative error below 5e-4."""

    name = "fp16"
    bytes_per_value = 2.0

    def encode(self, x: np.ndarray) -> np.ndarray:
        """See :meth:`Codec.encode`; values beyond 65504 are out of range."""
        with np.errstate(over="ignore"):  # checked below
            stored = x.astype(np.float16)
        if not np.isfinite(stored).all():
            raise ValueError(
                "the teacher's output has a value that is not finite, or beyond 65504 "
                f"(largest {np.abs(x).max()}); fp16 cannot store it"
            )
        return stored

    def decode_tensor(self, stored: Tensor) -> Tensor:
        return stored.float()


class Int8(Codec):
    """x is about ``mean + scale * q`` with q in -127 .. 127: one byte per value.

    Each dimension has its own scale, since a few dimensions of Whisper and similar
    teachers are a hundred times larger than the rest.

    State: ``mean`` and ``scale``, (W,) float32.
    """

    name = "int8"
    trained = True

    @classmethod
    def train(
        cls, size: Optional[int], frames: np.ndarray, seed: int, **options: Any
    ) -> dict[str, np.ndarray]:
        """Compute each dimension's mean and its largest distance from the mean.

        The largest 1e-4 of the distances are clipped, so that no single frame sets the
        scale.
        """
        mean = frames.mean(axis=0, dtype=np.float64)
        largest = np.quantile(np.abs(frames - mean), 1 - _CLIPPED, axis=0)
        # A constant dimension must not cause a division by zero.
        scale = np.maximum(largest, 1e-8) / _LEVELS
        return {"mean": mean.astype(np.float32), "scale": scale.astype(np.float32)}

    def encode(self, x: np.ndarray) -> np.ndarray:
        self.check_frames(x)
        q = np.rint((x - self._state["mean"]) / self._state["scale"])
        return np.clip(q, -_LEVELS, _LEVELS).astype(np.int8)

    def decode_tensor(self, stored: Tensor) -> Tensor:
        constants = self.constants_on(stored.device)
        x = stored.float()
        x *= constants["scale"]
        x += constants["mean"]
        return x


class TopK(Codec):
    """Token ids as uint16; log-probabilities and the tail's mass in half precision.

    :mod:`icefall_kd.core.frames` defines the frames: the first W // 2 of W values are
    ids.  A stored frame has the bytes of the ids as uint16, then those of the other
    values as float16, little-endian.
    """

    name = "topk"
    kinds = ("ctc", "path")
    bytes_per_value = 2.0

    def encode(self, x: np.ndarray) -> np.ndarray:
        """See :meth:`Codec.encode`; ids above 65535 are out of range."""
        self.check_frames(x)
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
        # The first half of the values, rounded down, are ids of 2 bytes each.
        pairs = stored.unflatten(-1, (-1, 2))
        ids, values = pairs.tensor_split([stored.size(-1) // 4], dim=-2)
        ids = ids[..., 0].float() + 256.0 * ids[..., 1].float()
        values = values.flatten(-2).contiguous().view(torch.float16).float()
        return torch.cat([ids, values], dim=-1)
