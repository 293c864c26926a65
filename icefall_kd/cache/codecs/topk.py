"""Codec ``topk``: token ids and probabilities of a frame, 2 bytes each."""

import numpy as np
import torch
from torch import Tensor

from icefall_kd.cache.codecs.base import Codec, check_finite


class TopK(Codec):
    """Ids as uint16, log-probabilities and the tail's mass in half precision.

    Its frames are those of :mod:`icefall_kd.cache.topk`: of W values the first W // 2
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
