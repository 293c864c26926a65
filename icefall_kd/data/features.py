"""The 80-bin log-mel filter bank that training, decoding and sherpa-onnx share.

Kaldi's definition: 25 ms windows every 10 ms, povey window, pre-emphasis 0.97, no
dither, 20 Hz to 7,600 Hz, frames centred so that T = (S + 80) // 160 (snip_edges
false).  lhotse computes it on the CPU, and on CUDA where kaldifeat is missing.

SpecAugment on padded batches, the same for the same seed, epoch and cuts.

Park et al., SpecAugment, 2019, arXiv:1904.08779.  The masks are lhotse's.
"""

import contextlib
import functools
import random
import zlib
from collections.abc import Iterator, Sequence
from typing import Callable, Union

import torch
from lhotse import Fbank, FbankConfig
from lhotse.dataset import SpecAugment as LhotseSpecAugment
from torch import Tensor

from icefall_kd import FBANK_SHIFT, NUM_MEL_BINS, SAMPLE_RATE

SHIFT = round(FBANK_SHIFT * SAMPLE_RATE)  # samples between two frames
WINDOW = 400  # samples, 25 ms
BLOCK = 6000  # frames of a long wave that are computed at a time
LOW_FREQ, HIGH_FREQ = 20.0, -400.0  # Hz; negative: below the Nyquist frequency


def num_frames(num_samples: int) -> int:
    """Return T of S samples: (S + 80) // 160, each 160 samples give a frame."""
    return (num_samples + SHIFT // 2) // SHIFT


def compute_fbank(
    waves: Sequence[Tensor], device: Union[str, torch.device] = "cpu"
) -> list[Tensor]:
    """Return the log-mel filter bank of each wave, on ``device``.

    The result does not depend on the number of threads, so that batches are the same
    with and without loader workers, which have one thread.

    Args:
      waves: each (S,) float32, 16 kHz, in [-1, 1], S >= 400.
    Returns:
      for each wave (T, 80) float32, T = (S + 80) // 160, natural log.
    Raises:
      ValueError: if a wave is not 1-D, or shorter than one window.
    """
    for wave in waves:
        if wave.dim() != 1 or wave.size(0) < WINDOW:
            raise ValueError(
                f"a wave must be (S,) with S >= {WINDOW}, got {tuple(wave.shape)}"
            )
    device = torch.device(device)
    if device.type == "cuda" and _has_kaldifeat():
        return _kaldifeat(device)([wave.to(device) for wave in waves])
    extractor = _lhotse(device.type)
    with torch.no_grad(), _one_thread():
        return [_in_blocks(extractor.extractor, wave.to(device)) for wave in waves]


def _in_blocks(extract: Callable[[Tensor], Tensor], wave: Tensor) -> Tensor:
    """Return the fbank of a wave; that of a long one in blocks, to save memory."""
    frames = num_frames(len(wave))
    blocks = []
    for begin in range(0, frames, BLOCK):
        end = min(begin + BLOCK, frames)
        lead = min(begin, 2)  # a window of 25 ms reaches less than two shifts further
        part = wave[(begin - lead) * SHIFT : (end + 2) * SHIFT]
        blocks.append(extract(part.unsqueeze(0))[0, lead : lead + end - begin])
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute the block with one CPU thread.

    With two, the product with the mel filters sums in another order: the features then
    differ by up to 5e-7, and the FFT gains no time from the second thread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.lru_cache(maxsize=None)
def _lhotse(device_type: str) -> Fbank:
    config = FbankConfig(
        sampling_rate=SAMPLE_RATE,
        num_filters=NUM_MEL_BINS,
        low_freq=LOW_FREQ,
        high_freq=HIGH_FREQ,
        dither=0.0,
        snip_edges=False,
        device=device_type,
    )
    extractor = Fbank(config)
    extractor.extractor.to(device_type)
    return extractor


@functools.lru_cache(maxsize=None)
def _has_kaldifeat() -> bool:
    try:
        import kaldifeat  # noqa: F401  # optional, built from source
    except (ImportError, OSError):
        return False
    return True


@functools.lru_cache(maxsize=None)
def _kaldifeat(device: torch.device):
    import kaldifeat

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
