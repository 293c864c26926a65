"""Log-mel filter bank features and SpecAugment.

The features are Kaldi's 80-bin fbank, as sherpa-onnx computes it: 25 ms windows every
10 ms, povey window, pre-emphasis 0.97, no dither, 20 Hz to 7,600 Hz.  With
``snip_edges=False``, S samples give T = (S + 80) // 160 frames.  lhotse computes them,
or kaldifeat on CUDA if it is installed.
"""

import contextlib
import functools
import random
import zlib
from collections.abc import Iterator, Sequence
from typing import Callable, Optional, Union

import torch
from lhotse import Fbank, FbankConfig
from lhotse.dataset import SpecAugment as LhotseSpecAugment
from torch import Tensor

from icefall_kd import FBANK_SHIFT, NUM_MEL_BINS, SAMPLE_RATE

SHIFT = round(FBANK_SHIFT * SAMPLE_RATE)  # samples between two frames
WINDOW = 400  # samples, 25 ms
BLOCK = 6000  # frames of a long wave that are computed at a time
LOW_FREQ, HIGH_FREQ = 20.0, -400.0  # Hz; a negative value is added to 8,000 Hz


def num_frames(num_samples: int) -> int:
    """Return the number of fbank frames of ``num_samples`` samples."""
    return (num_samples + SHIFT // 2) // SHIFT


def compute_fbank(
    waves: Sequence[Tensor], device: Union[str, torch.device] = "cpu"
) -> list[Tensor]:
    """Compute the log-mel filter bank of each wave.

    The result does not depend on the number of threads, so batches are equal with and
    without loader workers, which have one thread.

    Args:
      waves: each (S,) float32, 16 kHz, in [-1, 1], S >= 400.
      device: of the computation and of the result.
    Returns:
      (T, 80) float32 for each wave, natural logarithm.
    Raises:
      ValueError: if a wave is not 1-D, or is shorter than one window.
    """
    for wave in waves:
        if wave.dim() != 1 or wave.size(0) < WINDOW:
            raise ValueError(
                f"a wave must be (S,) with S >= {WINDOW}, got {tuple(wave.shape)}"
            )
    device = torch.device(device)
    kaldifeat = _create_kaldifeat(device) if device.type == "cuda" else None
    if kaldifeat is not None:
        return kaldifeat([wave.to(device) for wave in waves])
    extractor = _create_lhotse(device.type).extractor
    with torch.no_grad(), _use_one_thread():
        return [_compute_in_blocks(extractor, wave.to(device)) for wave in waves]


def _compute_in_blocks(extract: Callable[[Tensor], Tensor], wave: Tensor) -> Tensor:
    """Return the fbank of a wave; blocks limit the memory for a long wave."""
    frames = num_frames(len(wave))
    blocks = []
    for begin in range(0, frames, BLOCK):
        end = min(begin + BLOCK, frames)
        lead = min(begin, 2)  # a window overlaps less than two shifts on each side
        part = wave[(begin - lead) * SHIFT : (end + 2) * SHIFT]
        blocks.append(extract(part.unsqueeze(0))[0, lead : lead + end - begin])
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


@contextlib.contextmanager
def _use_one_thread() -> Iterator[None]:
    """Run the block with one CPU thread.

    With two threads the mel filters are summed in another order, which changes features
    by up to 5e-7.  Two threads are not faster.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.lru_cache(maxsize=None)
def _create_lhotse(device_type: str) -> Fbank:
    config = FbankConfig(
        sampling_rate=SAMPLE_RATE,
        num_filters=NUM_MEL_BINS,
        low_freq=LOW_FREQ,
        high_freq=HIGH_FREQ,
        dither=0.0,
        snip_edges=False,
        device=device_type,
    )
    fbank = Fbank(config)
    fbank.extractor.to(device_type)
    return fbank


@functools.lru_cache(maxsize=None)
def _create_kaldifeat(device: torch.device) -> Optional[Callable]:
    """Return kaldifeat's extractor on a CUDA device, None if it is not installed."""
    try:
        import kaldifeat  # optional, built from source
    except (ImportError, OSError):
        return None
    options = kaldifeat.FbankOptions()
    options.device = device
    options.frame_opts.samp_freq = SAMPLE_RATE
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = NUM_MEL_BINS
    options.mel_opts.low_freq = LOW_FREQ
    options.mel_opts.high_freq = HIGH_FREQ
    return kaldifeat.Fbank(options)


class SpecAugment:
    """Mask random mel bins and frames of each utterance, with lhotse's SpecAugment.

    Time warping is off by default, because it moves frames away from the frames of the
    teachers.  Equal seeds give equal masks.

    Source: Park et al., SpecAugment, 2019, arXiv:1904.08779.
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
        """Set the masks; all defaults except ``time_warp`` are icefall's.

        Args:
          time_warp: maximum shift in frames; 0 is off.
          num_feature_masks, feature_mask_size: number of masks of mel bins, and their
            maximum width in bins.
          num_frame_masks, frame_mask_size: number of masks of frames, and their maximum
            width in frames.
          max_frames_fraction: maximum share of an utterance's frames to mask.
          p: probability that an utterance is augmented.
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
        """Return a masked copy; padding and the caller's random state do not change.

        Args:
          features: (N, T, F) float32.
          lens: (N,) int64, valid frames.
          seed: seed of the masks.
        Returns:
          (N, T, F) float32.
        Raises:
          ValueError: if the shapes are different.
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
    """Return a 32-bit seed for a batch.

    Args:
      seed: seed of the run.
      ids: ids of the batch's cuts.
    """
    return zlib.crc32(f"{seed} {epoch} {' '.join(ids)}".encode())
