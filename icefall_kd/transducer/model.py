"""Stateless predictor: the next token from a few previous ones.

Joiner: combines encoder and predictor into unnormalised token scores.

The student: encoder, predictor, joiner and CTC head.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icefall_kd import BLANK_ID, LOG_EPS
from icefall_kd.core.frames import make_pad_mask
from icefall_kd.zipformer.cpu.blocks import LogSoftmax, disable_cpu_autocast
from icefall_kd.zipformer.regularisers import Balancer

NO_TOKEN = -1  # in the place of a token: its embedding is zero


class Decoder(nn.Module):
    """Embedding of the last ``context_size`` tokens through a grouped convolution.

    Source: Ghodsi et al., RNN-transducer with stateless prediction network, 2020,
    ICASSP; the convolution over several tokens as in k2's recipes.
    State-dict names: ``embedding``, ``conv`` (absent when ``context_size`` is 1).

    Attributes:
      context_size: number of previous tokens that the next one depends on.
      blank_id: id of the blank, which also stands for the start of an utterance.
    """

    def __init__(
        self,
        vocab_size: int,
        decoder_dim: int,
        context_size: int = 2,
        blank_id: int = BLANK_ID,
    ) -> None:
        super().__init__()
        if context_size < 1:
            raise ValueError(f"context_size must be at least 1, got {context_size}")
        if decoder_dim % 4 != 0:
            raise ValueError(f"decoder_dim must be a multiple of 4, got {decoder_dim}")
        self.vocab_size = vocab_size
        self.context_size = context_size
        self.blank_id = blank_id
        self.embedding = nn.Embedding(vocab_size, decoder_dim)
        # Keep the magnitudes from drifting, which averaged models suffer from.
        self.balancer = _magnitude_balancer()
        if context_size > 1:
            self.conv = nn.Conv1d(
                decoder_dim,
                decoder_dim,
                kernel_size=context_size,
                groups=decoder_dim // 4,
                bias=False,
            )
            self.balancer2 = _magnitude_balancer()

    def forward(self, y: Tensor, need_pad: bool = True) -> Tensor:
        """Embed each position together with the tokens before it.

        Args:
          y: (N, U) int64 token ids; a negative id means "no token here" and has a
            zero embedding (a hypothesis starts with such ids).
          need_pad: True in training, where position u sees ids u-context_size+1..u
            and nothing stands before the first.  False in decoding, where U must
            be ``context_size`` and one position comes out.
        Returns:
          (N, U, D) float, or (N, 1, D) when ``need_pad`` is False.
        """
        x = self.embedding(y.clamp(min=0)) * (y >= 0).unsqueeze(-1)
        x = self.balancer(x)
        if self.context_size == 1:
            return x
        x = x.transpose(1, 2)  # (N, U, D) -> (N, D, U)
        if need_pad:
            x = F.pad(x, (self.context_size - 1, 0))
        return self.balancer2(F.relu(self.conv(x)).transpose(1, 2))


def _magnitude_balancer() -> Balancer:
    return Balancer(
        min_positive=0.0,
        max_positive=1.0,
        min_abs=0.5,
        max_abs=1.0,
        prob=0.05,
    )


def small_linear(in_dim: int, out_dim: int, scale: float = 0.25) -> nn.Linear:
    """Return a linear layer that starts with weights ``scale`` times the usual.

    The layers in front of the two losses start small, so that the first batches
    see nearly uniform token scores; biases are uniform in +-0.1 * ``scale``.
    """
    layer = nn.Linear(in_dim, out_dim)
    with torch.no_grad():
        layer.weight.mul_(scale)
        layer.bias.uniform_(-0.1 * scale, 0.1 * scale)
    return layer


class Joiner(nn.Module):
    """Additive joiner: ``output_linear(tanh(project(enc) + project(dec)))``.

    State-dict names: ``encoder_proj``, ``decoder_proj``, ``output_linear``.
    """

    def __init__(
        self, encoder_dim: int, decoder_dim: int, joiner_dim: int, vocab_size: int
    ) -> None:
        super().__init__()
        self.encoder_proj = small_linear(encoder_dim, joiner_dim)
        self.decoder_proj = small_linear(decoder_dim, joiner_dim)
        self.output_linear = nn.Linear(joiner_dim, vocab_size)

    def forward(
        self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = True
    ) -> Tensor:
        """Score every token for pairs of encoder and predictor frames.

        Args:
          encoder_out: (..., C) float, or (..., joiner_dim) if already projected.
          decoder_out: (..., D) float, or (..., joiner_dim) if already projected; its
            leading axes broadcast against those of ``encoder_out``.
          project_input: False when both were projected before, which is cheaper
            when one frame meets many labels.
        Returns:
          (..., V) float, logits.
        Raises:
          ValueError: if the two inputs differ in their number of axes.
        """
        if encoder_out.dim() != decoder_out.dim():
            raise ValueError(
                "encoder_out and decoder_out need the same number of axes, got "
                f"{tuple(encoder_out.shape)} and {tuple(decoder_out.shape)}"
            )
        if project_input:
            encoder_out = self.encoder_proj(encoder_out)
            decoder_out = self.decoder_proj(decoder_out)
        return self.output_linear(torch.tanh(encoder_out + decoder_out))


class AsrModel(nn.Module):
    """Zipformer transducer with a CTC head.

    State-dict names are icefall's (``encoder_embed``, ``encoder``, ``decoder``,
    ``joiner``, ``simple_am_proj``, ``simple_lm_proj``, ``ctc_output``), so that its
    published checkpoints load.  The two ``simple_*`` layers serve only the loss
    that finds the pruning bounds: Kuang et al., Pruned RNN-T, 2022,
    arXiv:2206.13236.

    Attributes:
      encoder_dim: C of the encoder's output.
      vocab_size: V, the blank included.
      fields: Shar fields that the encoder hears; none: it hears the audio.
      min_frames: of its input, for one frame of its output.
      padding_value: of its input.
    """

    fields: tuple[str, ...] = ()
    min_frames = 9
    padding_value = LOG_EPS

    def __init__(
        self,
        encoder_embed: nn.Module,
        encoder: nn.Module,
        decoder: Decoder,
        joiner: Joiner,
        encoder_dim: int,
        decoder_dim: int,
        vocab_size: int,
    ) -> None:
        super().__init__()
        self.encoder_dim = encoder_dim
        self.vocab_size = vocab_size
        self.encoder_embed = encoder_embed
        self.encoder = encoder
        self.decoder = decoder
        self.joiner = joiner
        self.simple_am_proj = small_linear(encoder_dim, vocab_size)
        self.simple_lm_proj = small_linear(decoder_dim, vocab_size)
        self.ctc_output = nn.Sequential(
            nn.Dropout(0.1), nn.Linear(encoder_dim, vocab_size), LogSoftmax(dim=-1)
        )

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return what :meth:`forward_encoder` reads of a batch, and its lengths."""
        return batch["features"], batch["feature_lens"]

    def forward_encoder(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode whole utterances (chunk-masked when the encoder is causal).

        Args:
          x:      (N, T, F) float32, fbank padded with ``LOG_EPS``.
          x_lens: (N,) int64, valid frames of 10 ms.
        Returns:
          encoder_out (N, T', C) float and its lengths (N,) int64, frames of 40 ms;
          T' = ((T - 7) // 2 + 1) // 2.
        """
        encoder_out, lens, _ = self.forward_stacks(x, x_lens)
        return encoder_out, lens

    def forward_stacks(
        self, x: Tensor, x_lens: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encode as :meth:`forward_encoder`, and return the stacks' outputs as well.

        Returns:
          encoder_out, its lengths, and of each stack (N, T50, C_i) in frames of 20 ms.
        """
        x, x_lens = self.encoder_embed(x, x_lens)
        mask = make_pad_mask(x_lens, x.size(1))
        x = x.transpose(0, 1)  # (N, T, C) -> (T, N, C)
        with disable_cpu_autocast(x):
            x, x_lens, stacks = self.encoder(
                x, x_lens, src_key_padding_mask=mask, return_stacks=True
            )
        return x.transpose(0, 1), x_lens, [s.transpose(0, 1) for s in stacks]

    def init_states(self, batch_size: int, device: str = "cpu") -> list[Tensor]:
        """Return the encoder's states at the start of ``batch_size`` streams."""
        from icefall_kd.zipformer import streaming

        return streaming.init_states(
            self.encoder_embed, self.encoder, batch_size, device
        )

    def streaming_forward(
        self, x: Tensor, states: list[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encode one chunk of each stream.

        Args:
          x: (N, T, F) float32, T = 2 * chunk_size + 13; the next chunk starts
            2 * chunk_size frames later.
          states: as returned by :meth:`init_states` or the previous call.
        Returns:
          encoder_out (N, chunk_size / 2, C), lengths (N,) and the new states.
        """
        from icefall_kd.zipformer import streaming

        return streaming.streaming_forward(self.encoder_embed, self.encoder, x, states)
