"""SpecAugment on padded batches, the same for the same seed, epoch and cuts.

Park et al., SpecAugment, 2019, arXiv:1904.08779.  The masks are lhotse's.
"""

import random
import zlib
from collections.abc import Sequence

import torch
from lhotse.dataset import SpecAugment as LhotseSpecAugment
from torch import Tensor


class SpecAugment:
    """Masks bands of mel bins and spans of frames of each utterance.

    Time warping moves frames away from the times of a teacher's frames.  It is off by
    default, and training refuses it where the targets of a term are frames.
    """

    def __init__(
        self,
        *,
        time_warp: int = 0,
        num_feature_masks: int = 2,
        feature_mask_size: int = 27,
        num_frame_masks: int = 10,
        frame_mask_size: int = 100,
        max_frames_fraction: float = 0.15,
        p: float = 0.9,
    ) -> None:
        """Describe the masks; the defaults but for ``time_warp`` are icefall's.

        Args:
          time_warp: largest shift in frames; 0 is off.
          num_feature_masks, feature_mask_size: bands, and mel bins of the widest.
          num_frame_masks, frame_mask_size: spans, and frames of the longest.
          max_frames_fraction: of the frames of an utterance that all spans may mask.
          p: share of utterances that are changed at all.
        """
        self.time_warp = time_warp
        self._mask = LhotseSpecAugment(
            time_warp_factor=time_warp or None,
            num_feature_masks=num_feature_masks,
            features_mask_size=feature_mask_size,
            num_frame_masks=num_frame_masks,
            frames_mask_size=frame_mask_size,
            max_frames_mask_fraction=max_frames_fraction,
            p=p,
        )

    def __call__(self, features: Tensor, lens: Tensor, seed: int = 0) -> Tensor:
        """Return masked features; padding stays as it is.

        The caller's random state is neither read nor changed.

        Args:
          features: (N, T, F) float32.
          lens: (N,) int64, valid frames.
          seed: of the masks.
        Returns:
          (N, T, F) float32.
        """
        if features.dim() != 3 or lens.shape != features.shape[:1]:
            raise ValueError(
                f"features must be (N, T, F) and lens (N,), got "
                f"{tuple(features.shape)} and {tuple(lens.shape)}"
            )
        features = features.clone()
        python_state = random.getstate()
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            torch.manual_seed(seed)
            for i, length in enumerate(lens.tolist()):
                features[i, :length] = self._mask(features[i : i + 1, :length])[0]
        random.setstate(python_state)
        return features


def batch_seed(seed: int, epoch: int, ids: Sequence[str]) -> int:
    """Return a 32-bit seed that only these cuts in this epoch have."""
    return zlib.crc32(f"{seed} {epoch} {' '.join(ids)}".encode())
