"""Whisper's log-mel features for a batch of equally long waves.

Source: Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision,
2022, arXiv:2212.04356, section 2.2: Hann window of 25 ms, hop 10 ms, power spectrum,
Slaney mel filters of unit area, log10 floored at 8 below the utterance's maximum,
then (x + 4) / 4.
"""

import functools

import torch
from torch import Tensor

from icefall_kd import SAMPLE_RATE

N_FFT = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms


@functools.lru_cache(maxsize=None)
def mel_filters(num_mels: int) -> Tensor:
    """Return the (N_FFT // 2 + 1, num_mels) float32 Slaney filter bank, 0 to 8 kHz."""
    import torchaudio

    return torchaudio.functional.melscale_fbanks(
        n_freqs=N_FFT // 2 + 1,
        f_min=0.0,
        f_max=SAMPLE_RATE / 2,
        n_mels=num_mels,
        sample_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )


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
