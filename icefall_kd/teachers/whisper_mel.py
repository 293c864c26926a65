"""Whisper's log-mel features for a batch of equally long waves.

Source: Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision,
2022, arXiv:2212.04356, section 2.2: Hann window of 25 ms, hop 10 ms, power spectrum,
Slaney mel filters of unit area, log10 floored at 8 below the utterance's maximum,
then (x + 4) / 4.
"""

import functools
import math

import torch
from torch import Tensor

from icefall_kd import SAMPLE_RATE

N_FFT = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
LINEAR_HZ = 1000.0  # where Slaney's scale turns logarithmic
LINEAR_MELS = 15.0  # up to there
LOG_STEP = math.log(6.4) / 27.0  # nats of frequency in a mel above


@functools.lru_cache(maxsize=None)
def mel_filters(num_mels: int) -> Tensor:
    """Return the (N_FFT // 2 + 1, num_mels) float32 Slaney filter bank, 0 to 8 kHz.

    Triangles of unit area, at equal distances on a scale that is linear up to 1 kHz and
    logarithmic above: Slaney, Auditory Toolbox, 1998.  Ours, since torchaudio has no
    release for every torch.
    """
    top = _hz_to_mel(SAMPLE_RATE / 2)
    corners = _mel_to_hz(torch.linspace(0.0, top, num_mels + 2, dtype=torch.float64))
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    bins = torch.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1, dtype=torch.float64)
    hz = bins.unsqueeze(1)
    rising, falling = (hz - low) / (middle - low), (high - hz) / (high - middle)
    triangles = torch.minimum(rising, falling).clamp(min=0.0)
    return (triangles * 2 / (high - low)).float()


def _hz_to_mel(hz: float) -> float:
    """Return Slaney's mel of a frequency above the linear part."""
    return LINEAR_MELS + math.log(hz / LINEAR_HZ) / LOG_STEP


def _mel_to_hz(mel: Tensor) -> Tensor:
    above = LINEAR_HZ * ((mel - LINEAR_MELS) * LOG_STEP).exp()
    return torch.where(mel < LINEAR_MELS, mel * LINEAR_HZ / LINEAR_MELS, above)


def log_mel(waves: Tensor, num_mels: int) -> Tensor:
    """Return Whisper's input features.

    Each row is normalised by its own maximum, so a row is the same in any batch.

    Args:
      waves:    (N, S) float32, 16 kHz, in [-1, 1]; S > N_FFT // 2 for the reflected
                border.
      num_mels: F, 80, or 128 for large-v3.
    Returns:
      (N, F, S // HOP) float32.
    """
    spectrum = torch.stft(
        waves,
        N_FFT,
        HOP,
        window=torch.hann_window(N_FFT, device=waves.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    power = spectrum[..., :-1].abs().square()  # Whisper drops the last frame
    mel = mel_filters(num_mels).to(waves.device).t() @ power
    mel = mel.clamp(min=1e-10).log10()
    floor = mel.amax(dim=(1, 2), keepdim=True) - 8.0
    return (torch.maximum(mel, floor) + 4.0) / 4.0
