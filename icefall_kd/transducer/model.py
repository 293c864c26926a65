"""The student: encoder, predictor, joiner and CTC head."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from icefall_kd import LOG_EPS
from icefall_kd.masks import make_pad_mask
from icefall_kd.transducer.joiner import Joiner, small_linear
from icefall_kd.transducer.predictor import Decoder
from icefall_kd.zipformer.precision import LogSoftmax, full_on_cpu


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
        with full_on_cpu(x):
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
