"""The one padding mask."""

from typing import Optional

import torch
from torch import Tensor


def make_pad_mask(lens: Tensor, max_len: Optional[int] = None) -> Tensor:
    """Return the mask that is True at padding.

    >>> make_pad_mask(torch.tensor([1, 3]))
    tensor([[False,  True,  True],
            [False, False, False]])

    Args:
      lens:    (N,) int64, valid frames of each sequence.
      max_len: number of columns; the longest length when None.
    Returns:
      (N, max_len) bool.
    Raises:
      ValueError: if ``lens`` is not 1-D.
    """
    if lens.dim() != 1:
        raise ValueError(f"lens must be (N,), got {tuple(lens.shape)}")
    # Kept as a tensor so that an exported graph has a dynamic number of frames.
    end = lens.max() if max_len is None else max_len
    return torch.arange(end, device=lens.device).unsqueeze(0) >= lens.unsqueeze(1)
