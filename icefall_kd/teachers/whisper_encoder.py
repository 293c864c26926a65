"""Whisper's log-mel features for a batch of equally long waves.

Source: Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision,
2022, arXiv:2212.04356, section 2.2: Hann window of 25 ms, hop 10 ms, power spectrum,
Slaney mel filters of unit area, log10 floored at 8 below the utterance's maximum,
then (x + 4) / 4.

Whisper's encoder as ``transformers`` has it, without the padding to 30 s.

What a clip hears beyond its end, and why: :mod:`icefall_kd.teachers.whisper_ct2`.
"""

import functools
import math
from typing import Any, Optional

import torch
from torch import Tensor, nn

from icefall_kd import SAMPLE_RATE
from icefall_kd.teachers.protocol import LayerChoice
from icefall_kd.teachers.windows import OVERLAP, Piece, padded_samples

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


class WhisperEncoder:
    """The blocks of Whisper's encoder up to the highest layer asked for.

    Frame k hears the samples from 320 k - 520 to 320 k + 520 and what the blocks make
    of the rest; its centre, at 20 k ms, is 10 ms before the one that
    :mod:`icefall_kd.core.frames` takes it for, a quarter of the student's frame.

    Args:
      model:      ``transformers``' WhisperEncoder, in float32; it is truncated.
      config:     of the model.
      choice:     the layers.
      max_window: seconds that are heard at once, at most the positions that the model
                  has (30 s); longer utterances are cut.
      context:    seconds of silence appended to each piece.
      bucket:     seconds; the padded length is rounded up to a multiple of it.
    Attributes:
      as :class:`~icefall_kd.teachers.wave_encoder.WaveEncoder`.
    """

    equal = True  # there is no mask, so what pads a batch is heard
    frame = 2 * HOP
    overlap = OVERLAP

    def __init__(
        self,
        model: nn.Module,
        config: Any,
        choice: LayerChoice,
        max_window: Optional[float] = None,
        context: float = 1.0,
        bucket: float = 0.5,
    ) -> None:
        longest = config.max_source_positions * self.frame / SAMPLE_RATE
        max_window = longest if max_window is None else max_window
        if not 2 * self.overlap / SAMPLE_RATE < max_window <= longest:
            raise ValueError(
                f"max_window: {max_window} s; this Whisper takes more than "
                f"{2 * self.overlap / SAMPLE_RATE} s and at most {longest} s"
            )
        self.window = int(max_window * SAMPLE_RATE) // self.frame * self.frame
        self.options = {
            "max_window": float(max_window),
            "context": context,
            "bucket": bucket,
        }
        self._choice = choice
        self._num_mels = config.num_mel_bins
        self._model = model
        if choice.highest < len(model.layers):
            model.layer_norm = nn.Identity()  # it belongs to the last block's output
        model.layers = model.layers[: choice.highest]

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the model."""
        self._model.to(device=device, dtype=dtype)
        self._device, self._dtype = device, dtype

    def prepare(self, waves: Tensor, wave_lens: Tensor) -> Tensor:
        """Return the waves as they are: the features are made of each piece."""
        return waves

    def heard(self, piece: Piece) -> int:
        """Return the samples that are heard for a piece, with its silence."""
        return padded_samples(
            piece.samples,
            self.options["context"],
            self.options["bucket"],
            self.frame,
            self.window,
        )

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Return the frames of so many samples, rounded up; int64 to int64."""
        return torch.div(
            num_samples + self.frame - 1, self.frame, rounding_mode="floor"
        )

    def encode(self, waves: Tensor, wave_lens: Tensor) -> dict[int, Tensor]:
        """Return layer -> (N, S // 320, D).

        Positions are those of the audio that is there, not of 30 s.

        Args:
          waves:     (N, S) float32, S a multiple of 320.
          wave_lens: (N,) int64, valid samples; the rest is heard as silence.
        """
        model = self._model
        mel = log_mel(waves.to(self._device), self._num_mels).to(self._dtype)
        x = nn.functional.gelu(model.conv1(mel))
        x = nn.functional.gelu(model.conv2(x)).transpose(1, 2)
        x = x + model.embed_positions.weight[: x.shape[1]]
        hidden = {}
        for k, layer in enumerate(model.layers):
            if k in self._choice.layers:
                hidden[k] = x
            x = layer(x, attention_mask=None, layer_head_mask=None)[0]
        hidden[self._choice.highest] = model.layer_norm(x)
        return hidden
