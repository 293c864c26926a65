"""Encoders of waveforms: wav2vec 2.0, HuBERT, WavLM and data2vec-audio.

An utterance has the same output alone and in a padded batch.  The models' attention
mask does not suffice for this:

- Models with ``feat_extract_norm: group`` (wav2vec2-base, hubert-base, wavlm-base) were
  trained without a mask, and normalise the output of the first convolution over time,
  padding included.  Here the statistics are over the valid frames of each utterance.
- The positional convolutions of data2vec follow each other, and one variant of HuBERT
  has a batch normalisation before them, so padding is no longer zero.  Here padding is
  set to zero before each of these convolutions, like the zeros that they add at the end
  of a tensor.
"""

import math
from typing import Any, Optional

import torch
from torch import Tensor, nn

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.frames import make_pad_mask
from icefall_kd.teachers.base import LayerChoice
from icefall_kd.teachers.windows import OVERLAP, Piece

MAX_WINDOW = 40.0  # s; the longest utterance of LibriSpeech has 35 s


class WaveEncoder:
    """The blocks of a model up to the highest chosen layer.

    With the usual strides, frame k covers samples 320 k to 320 k + 400, so its centre
    is at 20 k + 12.5 ms.  :mod:`icefall_kd.core.frames` assumes 20 k + 10 ms; the
    difference is a sixteenth of the student's frame.

    Args:
      model:      the base model, in float32; its higher blocks are removed.
      config:     of the model.
      normalise:  whether each utterance gets zero mean and unit variance.
      choice:     layers to compute.
      max_window: maximum input in seconds; longer utterances are split into windows.
                  None is :data:`MAX_WINDOW`.
    Attributes:
      frame:   samples from one frame to the next.
      window:  maximum input in samples.
      overlap: samples shared by two windows.
      needs_equal_lengths: whether the pieces of a batch must have one padded length.
      options: entries of the fingerprint.
    """

    needs_equal_lengths = False

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
                f"max_window: {max_window} s is too short for windows that overlap by "
                f"{self.overlap / SAMPLE_RATE} s. Give more than twice the overlap"
            )
        self.options = {"max_window": float(max_window), "normalise": normalise}
        self._normalise = normalise
        self._choice = choice
        self._min_samples = compute_receptive_field(
            config.conv_kernel, config.conv_stride
        )
        self._kernel, self._stride = config.conv_kernel[0], config.conv_stride[0]
        # State of the current batch, which the hooks read.
        self._first_lens: list[int] = []  # valid frames after the first convolution
        self._mask: Optional[Tensor] = None  # (N, T) bool, after the last convolution
        self._model = model
        self._remove_blocks(config)
        self._isolate_padding()

    def _remove_blocks(self, config: Any) -> None:
        encoder, highest = self._model.encoder, self._choice.highest
        # The large models normalise only the output of the last block.
        is_stable = getattr(config, "do_stable_layer_norm", False)
        if highest < len(encoder.layers) and is_stable:
            encoder.layer_norm = nn.Identity()
        encoder.layers = encoder.layers[:highest]

    def _isolate_padding(self) -> None:
        first = self._model.feature_extractor.conv_layers[0]
        if isinstance(first.layer_norm, nn.GroupNorm):
            first.layer_norm = _ValidGroupNorm(first.layer_norm, self._first_lens)
        for module in self._model.encoder.pos_conv_embed.modules():
            if isinstance(module, nn.Conv1d):
                module.register_forward_pre_hook(self._zero_padding)

    def _zero_padding(self, module: nn.Module, inputs: tuple) -> tuple:
        (x,) = inputs  # (N, C, T)
        return (x.masked_fill(self._mask.unsqueeze(1), 0.0),)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the model to a device and dtype; call it only once.

        On a CPU the positional convolutions stay in float32.  In bfloat16, oneDNN of
        torch 2.13 computes wrong values for grouped convolutions (cosine -0.03 to
        float32, on a processor with AMX).
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
        """Return the waves, normalised if the model needs it, and zero at padding.

        The normalisation is that of ``Wav2Vec2FeatureExtractor``:
        (x - mean) / sqrt(variance + 1e-7), over the utterance before it is split into
        windows.
        """
        out = torch.zeros_like(waves)
        for row, wave, n in zip(out, waves, wave_lens.tolist()):
            wave = wave[:n]
            if self._normalise:
                wave = wave - wave.mean()
                wave = wave / torch.sqrt(wave.square().mean() + 1e-7)
            row[:n] = wave
        return out

    def count_padded_samples(self, piece: Piece) -> int:
        """Return the input length of a piece in samples, at least that of one frame."""
        return max(piece.samples, self._min_samples)

    def count_frames(self, num_samples: Tensor) -> Tensor:
        """Return the number of frames, at least 1: (N,) int64 to (N,) int64."""
        padded = num_samples.clamp(min=self._min_samples)
        return self._model._get_feat_extract_output_lengths(padded).to(torch.int64)

    def encode(self, waves: Tensor, wave_lens: Tensor) -> dict[int, Tensor]:
        """Return layer -> (N, T, D), valid up to ``count_frames(wave_lens)``.

        Args:
          waves:     (N, S) float32, from :meth:`prepare`; S is the maximum of
                     :meth:`count_padded_samples`.
          wave_lens: (N,) int64, valid samples.
        """
        device, num_samples = self._device, waves.shape[1]
        layers, highest = self._choice.layers, self._choice.highest
        lens = wave_lens.cpu().clamp(min=self._min_samples)
        self._first_lens[:] = ((lens - self._kernel) // self._stride + 1).tolist()
        self._mask = make_pad_mask(self.count_frames(lens)).to(device)
        output = self._model(
            waves.to(device, self._dtype),
            attention_mask=(~make_pad_mask(lens, num_samples)).long().to(device),
            output_hidden_states=any(k < highest for k in layers),
            return_dict=True,
        )
        hidden = dict(enumerate(output.hidden_states or ()))
        return {**{k: hidden[k] for k in layers if k < highest}, highest: output[0]}


class _ValidGroupNorm(nn.Module):
    """Group normalisation over the valid frames of each utterance.

    Args:
      norm: the model's normalisation.
      lens: valid frames of each utterance; the encoder updates the list in each batch.
    """

    def __init__(self, norm: nn.GroupNorm, lens: list[int]) -> None:
        super().__init__()
        self.norm = norm
        self._lens = lens

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, T) in place; padding is unchanged."""
        for row, n in zip(x, self._lens):
            row[:, :n] = self.norm(row[None, :, :n])[0]
        return x


def compute_receptive_field(kernels: list[int], strides: list[int]) -> int:
    """Return the number of samples that one frame of stacked convolutions covers.

    >>> compute_receptive_field([10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2])
    400
    """
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides)):
        field = (field - 1) * stride + kernel
    return field
