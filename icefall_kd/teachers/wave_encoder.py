"""Encoders that hear samples: wav2vec 2.0, HuBERT, WavLM and data2vec-audio.

An utterance in a padded batch gets what it gets alone.  The attention mask of the
models is not enough for that:

- The first convolution of the models with ``feat_extract_norm: group`` (wav2vec2-base,
  hubert-base, wavlm-base) is followed by a normalisation over time, which sees the
  padding.  They were trained without a mask.  Here its statistics are those of each
  utterance's own frames.
- The positional convolutions of data2vec come one after another, and one form of
  HuBERT's follows a batch normalisation: what was zero beyond the end no longer is.
  Here each of them hears zeros beyond the end, as it does at the end of a tensor.

So no model needs batches of one length, and padding costs time only.
"""

import math
from typing import Any, Optional

import torch
from torch import Tensor, nn

from icefall_kd import SAMPLE_RATE
from icefall_kd.teachers.protocol import LayerChoice
from icefall_kd.teachers.windows import OVERLAP, Piece

MAX_WINDOW = 40.0  # s; LibriSpeech's longest utterance has 35


class WaveEncoder:
    """The blocks of a model up to the highest layer asked for.

    Frame k hears the samples from k * 320 to k * 320 + 400 (the usual strides), so
    its centre is at 20 k + 12.5 ms.  :mod:`icefall_kd.core.frames` takes it for
    20 k + 10 ms: 2.5 ms off, a sixteenth of the student's frame.

    Args:
      model:      the base model, in float32; it is truncated.
      config:     of the model.
      normalise:  zero mean and unit variance of each utterance's samples.
      choice:     the layers.
      max_window: seconds that are heard at once; longer utterances are cut.
    Attributes:
      frame:   samples from one frame to the next.
      window:  samples heard at once.
      overlap: samples shared by two windows.
      equal:   whether a batch must be of one length.
      options: what the fingerprint says.
    """

    equal = False

    def __init__(
        self,
        model: nn.Module,
        config: Any,
        normalise: bool,
        choice: LayerChoice,
        max_window: Optional[float] = None,
    ) -> None:
        max_window = MAX_WINDOW if max_window is None else max_window
        self.frame = math.prod(config.conv_stride)
        self.overlap = OVERLAP // (2 * self.frame) * 2 * self.frame
        self.window = int(max_window * SAMPLE_RATE) // self.frame * self.frame
        if self.window <= 2 * self.overlap:
            raise ValueError(
                f"max_window: {max_window} s is too short: windows overlap by "
                f"{self.overlap / SAMPLE_RATE} s, so give more than twice that"
            )
        self.options = {"max_window": float(max_window), "normalise": normalise}
        self._normalise = normalise
        self._choice = choice
        self._shortest = receptive_field(config.conv_kernel, config.conv_stride)
        self._valid_first: list[int] = []  # frames after the first convolution
        self._padding: Optional[Tensor] = None  # (N, T) bool, of the last one
        self._kernel, self._stride = config.conv_kernel[0], config.conv_stride[0]
        self._model = model
        self._truncate(config)
        self._guard_padding()

    def _truncate(self, config: Any) -> None:
        encoder, highest = self._model.encoder, self._choice.highest
        # The large models normalise after the last block, not before the first one.
        if highest < len(encoder.layers) and getattr(
            config, "do_stable_layer_norm", False
        ):
            encoder.layer_norm = nn.Identity()
        encoder.layers = encoder.layers[:highest]

    def _guard_padding(self) -> None:
        first = self._model.feature_extractor.conv_layers[0]
        if isinstance(first.layer_norm, nn.GroupNorm):
            first.layer_norm = _ValidGroupNorm(first.layer_norm, self._valid_first)
        for module in self._model.encoder.pos_conv_embed.modules():
            if isinstance(module, nn.Conv1d):
                module.register_forward_pre_hook(self._zero_padding)

    def _zero_padding(self, module: nn.Module, inputs: tuple) -> tuple:
        (x,) = inputs  # (N, C, T)
        return (x.masked_fill(self._padding.unsqueeze(1), 0.0),)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the model; call it once.

        On a CPU the positional convolutions stay in float32: of groups of channels in
        bfloat16, oneDNN of torch 2.13 makes something else (cosine -0.03 to float32, on
        a processor with AMX).
        """
        self._model.to(device=device, dtype=dtype)
        self._device, self._dtype = device, dtype
        if device.type == "cpu" and dtype != torch.float32:
            for module in self._model.encoder.pos_conv_embed.modules():
                if isinstance(module, nn.Conv1d):
                    module.float()
                    module.register_forward_pre_hook(lambda _, x: (x[0].float(),))
                    module.register_forward_hook(lambda _, x, y: y.to(dtype))

    def prepare(self, waves: Tensor, wave_lens: Tensor) -> Tensor:
        """Return the waves as the model was trained on them, zero beyond their ends.

        Normalised as ``Wav2Vec2FeatureExtractor`` does: (x - mean) / sqrt(variance +
        1e-7) over the utterance, before it is cut into windows.
        """
        out = torch.zeros_like(waves)
        for row, wave, n in zip(out, waves, wave_lens.tolist()):
            wave = wave[:n]
            if self._normalise:
                wave = wave - wave.mean()
                wave = wave / torch.sqrt(wave.square().mean() + 1e-7)
            row[:n] = wave
        return out

    def heard(self, piece: Piece) -> int:
        """Return the samples that are heard for a piece: enough for a frame."""
        return max(piece.samples, self._shortest)

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Return the frames of so many samples, at least 1; int64 to int64."""
        heard = num_samples.clamp(min=self._shortest)
        return self._model._get_feat_extract_output_lengths(heard).to(torch.int64)

    def encode(self, waves: Tensor, wave_lens: Tensor) -> dict[int, Tensor]:
        """Return layer -> (N, T, D), valid up to ``num_frames(wave_lens)``.

        Args:
          waves:     (N, S) float32, prepared, S the longest that is heard.
          wave_lens: (N,) int64, valid samples.
        """
        device, num_samples = self._device, waves.shape[1]
        layers, highest = self._choice.layers, self._choice.highest
        lens = wave_lens.cpu().clamp(min=self._shortest)
        self._valid_first[:] = ((lens - self._kernel) // self._stride + 1).tolist()
        frames = self.num_frames(lens)
        self._padding = _beyond(frames, int(frames.max())).to(device)
        output = self._model(
            waves.to(device, self._dtype),
            attention_mask=(~_beyond(lens, num_samples)).long().to(device),
            output_hidden_states=any(k < highest for k in layers),
            return_dict=True,
        )
        hidden = dict(enumerate(output.hidden_states or ()))
        return {**{k: hidden[k] for k in layers if k < highest}, highest: output[0]}


def _beyond(lens: Tensor, size: int) -> Tensor:
    """(N,) int64 -> (N, size) bool, True from each length on."""
    return torch.arange(size) >= lens.unsqueeze(1)


class _ValidGroupNorm(nn.Module):
    """Normalises over the valid frames of each utterance.

    Args:
      norm:  the model's own.
      valid: frames of each utterance; changed from outside for each batch.
    """

    def __init__(self, norm: nn.GroupNorm, valid: list[int]) -> None:
        super().__init__()
        self.norm = norm
        self._valid = valid

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T) -> (N, C, T), in place; the padding stays what it is."""
        for row, n in zip(x, self._valid):
            row[:, :n] = self.norm(row[None, :, :n])[0]
        return x


def receptive_field(kernels: list[int], strides: list[int]) -> int:
    """Return the samples that one frame of a stack of convolutions hears.

    >>> receptive_field([10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2])
    400
    """
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides)):
        field = (field - 1) * stride + kernel
    return field
