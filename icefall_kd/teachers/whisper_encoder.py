"""Whisper's encoder as ``transformers`` has it, without the padding to 30 s.

What a clip hears beyond its end, and why: :mod:`icefall_kd.teachers.whisper_ct2`.
"""

from typing import Any, Optional

import torch
from torch import Tensor, nn

from icefall_kd import SAMPLE_RATE
from icefall_kd.teachers.layers import LayerChoice
from icefall_kd.teachers.whisper_mel import HOP, log_mel
from icefall_kd.teachers.windows import OVERLAP, Piece, padded_samples


class WhisperEncoder:
    """The blocks of Whisper's encoder up to the highest layer asked for.

    Frame k hears the samples from 320 k - 520 to 320 k + 520 and what the blocks make
    of the rest; its centre, at 20 k ms, is 10 ms before the one that
    :mod:`icefall_kd.distill.align` takes it for, a quarter of the student's frame.

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
