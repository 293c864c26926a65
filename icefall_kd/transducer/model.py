"""The student: Zipformer encoder, predictor, joiner and CTC head.

`Decoder` is icefall's name for the predictor; `Joiner` and `AsrModel` follow icefall's
``joiner.py`` and ``model.py``.  State-dict keys are icefall's, so that its published
checkpoints load.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icefall_kd import LOG_EPS
from icefall_kd.core.config import ModelConfig
from icefall_kd.core.frames import make_pad_mask
from icefall_kd.zipformer import streaming
from icefall_kd.zipformer.cpu.blocks import LogSoftmax, disable_cpu_autocast
from icefall_kd.zipformer.encoder import build_encoder
from icefall_kd.zipformer.regularisers import Balancer
from icefall_kd.zipformer.scaling import scaled_linear
from icefall_kd.zipformer.subsampling import MIN_FRAMES

NO_TOKEN = -1  # id of a position without a token; its embedding is zero


class Decoder(nn.Module):
    """Stateless predictor: embeddings of the last tokens, then a grouped convolution.

    Source: Ghodsi et al., RNN-transducer with stateless prediction network, 2020,
    ICASSP; the convolution over several tokens as in icefall.

    Args:
      vocab_size: V, the blank included.
      decoder_dim: D, a multiple of 4.
      context_size: number of previous tokens that the output depends on; with 1 there
        is no convolution.
    Raises:
      ValueError: if ``context_size`` or ``decoder_dim`` is invalid.
    """

    def __init__(
        self, vocab_size: int, decoder_dim: int, context_size: int = 2
    ) -> None:
        super().__init__()
        if context_size < 1:
            raise ValueError(
                f"model.context_size must be at least 1, got {context_size}"
            )
        if decoder_dim % 4 != 0:
            raise ValueError(
                f"model.decoder_dim must be a multiple of 4, got {decoder_dim}"
            )
        self.vocab_size = vocab_size
        self.context_size = context_size
        self.embedding = nn.Embedding(vocab_size, decoder_dim)
        # If the magnitudes drifted, the average of several checkpoints would be poor.
        limits = dict(min_positive=0.0, max_positive=1.0, min_abs=0.5, max_abs=1.0)
        self.balancer = Balancer(**limits, prob=0.05)
        if context_size > 1:
            self.conv = nn.Conv1d(
                decoder_dim,
                decoder_dim,
                kernel_size=context_size,
                groups=decoder_dim // 4,
                bias=False,
            )
            self.balancer2 = Balancer(**limits, prob=0.05)

    def forward(self, y: Tensor, need_pad: bool = True) -> Tensor:
        """Embed each position together with the tokens before it.

        Output u depends on the ids u - context_size + 1 ... u.

        Args:
          y: (N, U) int64 token ids; negative ids (`NO_TOKEN`) have a zero embedding.
          need_pad: True pads the start with zeros, for training.  False is for
            decoding: U is ``context_size``, and the output has one position.
        Returns:
          (N, U, D) float, or (N, 1, D) if ``need_pad`` is False.
        """
        x = self.embedding(y.clamp(min=0)) * (y >= 0).unsqueeze(-1)
        x = self.balancer(x)
        if self.context_size == 1:
            return x
        x = x.transpose(1, 2)  # (N, U, D) -> (N, D, U)
        if need_pad:
            x = F.pad(x, (self.context_size - 1, 0))
        return self.balancer2(F.relu(self.conv(x)).transpose(1, 2))


class Joiner(nn.Module):
    """Token logits: ``output_linear(tanh(encoder_proj(x) + decoder_proj(y)))``.

    Args:
      encoder_dim, decoder_dim: C and D, dimensions of the two inputs.
      joiner_dim: hidden dimension.
      vocab_size: V, the blank included.
    """

    def __init__(
        self, encoder_dim: int, decoder_dim: int, joiner_dim: int, vocab_size: int
    ) -> None:
        super().__init__()
        # A small initial scale makes the first distributions nearly uniform.
        self.encoder_proj = scaled_linear(encoder_dim, joiner_dim, initial_scale=0.25)
        self.decoder_proj = scaled_linear(decoder_dim, joiner_dim, initial_scale=0.25)
        self.output_linear = nn.Linear(joiner_dim, vocab_size)

    def forward(
        self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = True
    ) -> Tensor:
        """Compute the logits for pairs of encoder and predictor outputs.

        Args:
          encoder_out: (..., C) float, or (..., joiner_dim) if already projected.
          decoder_out: (..., D) float, or (..., joiner_dim) if already projected; its
            leading axes broadcast against those of ``encoder_out``.
          project_input: False if both inputs are already projected.
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

    Only the simple loss, which finds the pruning bounds, uses ``simple_am_proj`` and
    ``simple_lm_proj``: Kuang et al., Pruned RNN-T, 2022, arXiv:2206.13236.

    Attributes:
      encoder_dim: C, dimension of the encoder's output.
      vocab_size: V, the blank included.
      fields: names of the fields that the encoder reads; empty if it reads fbank.
      min_frames: smallest number of input frames that gives an output frame.
      padding_value: value of padded input.
    """

    fields: tuple[str, ...] = ()
    min_frames = MIN_FRAMES
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
        self.simple_am_proj = scaled_linear(encoder_dim, vocab_size, initial_scale=0.25)
        self.simple_lm_proj = scaled_linear(decoder_dim, vocab_size, initial_scale=0.25)
        self.ctc_output = nn.Sequential(
            nn.Dropout(0.1), nn.Linear(encoder_dim, vocab_size), LogSoftmax(dim=-1)
        )

    def get_inputs(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the encoder's input in a batch, and its lengths.

        Args:
          batch: see ``icefall_kd.dataset.dataset``.
        Returns:
          (N, T, F) float32, fbank, and (N,) int64, valid frames of 10 ms.
        """
        return batch["features"], batch["feature_lens"]

    def forward_encoder(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode utterances, with a chunk mask if the encoder is causal.

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
        """Encode as :meth:`forward_encoder`; also return the outputs of the stacks.

        Args:
          x, x_lens: as in :meth:`forward_encoder`.
        Returns:
          encoder_out, its lengths, and the output of each stack, (N, (T - 7) // 2, C_i)
          in frames of 20 ms.
        """
        x, x_lens = self.encoder_embed(x, x_lens)
        with disable_cpu_autocast(x):
            return self.encoder(x, x_lens, make_pad_mask(x_lens, x.size(1)))

    def init_states(self, batch_size: int, device: str = "cpu") -> list[Tensor]:
        """Return the encoder's states at the start of ``batch_size`` streams."""
        return streaming.init_states(
            self.encoder_embed, self.encoder, batch_size, device
        )

    def streaming_forward(
        self, x: Tensor, states: list[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encode one chunk of each stream.

        Args:
          x: (N, T, F) float32, fbank, T = 2 * chunk_size + 13; the next window starts
            2 * chunk_size frames later.
          states: from :meth:`init_states` or the previous call.
        Returns:
          encoder_out (N, chunk_size / 2, C), its lengths (N,), and the next states.
        """
        return streaming.streaming_forward(self.encoder_embed, self.encoder, x, states)


def build_model(config: ModelConfig) -> AsrModel:
    """Return a newly initialised model.

    Raises:
      ValueError: if ``config.vocab_size`` is below 2, or sizes do not fit together.
    """
    if config.vocab_size < 2:
        raise ValueError(
            "model.vocab_size must be at least 2 (the blank is one), got "
            f"{config.vocab_size}"
        )
    dim = get_encoder_dim(config)
    parts = {
        "decoder": Decoder(config.vocab_size, config.decoder_dim, config.context_size),
        "joiner": Joiner(dim, config.decoder_dim, config.joiner_dim, config.vocab_size),
        "encoder_dim": dim,
        "decoder_dim": config.decoder_dim,
        "vocab_size": config.vocab_size,
    }
    if config.field_encoder is not None:
        # Not at the top, because that module imports this one.
        from icefall_kd.transducer.field_encoder import FieldModel

        return FieldModel(config.field_encoder, **parts)
    encoder_embed, encoder = build_encoder(config.encoder)
    return AsrModel(encoder_embed=encoder_embed, encoder=encoder, **parts)


def get_encoder_dim(config: ModelConfig) -> int:
    """Return C, the dimension of the encoder's output."""
    if config.field_encoder is not None:
        return config.field_encoder.dim
    return max(config.encoder.encoder_dim)


def get_stack_dims(
    config: ModelConfig, stacks: Sequence[int], option: str
) -> list[int]:
    """Return C_i, the output dimension of some stacks of the encoder.

    Args:
      stacks: indices from 0; negative from the end.
      option: name of the option with these indices, for the error message.
    Raises:
      ValueError: if a stack does not exist, or the encoder has no stacks.
    """
    if config.field_encoder is not None:
        raise ValueError(
            f"{option}: an encoder over teachers' embeddings has no stacks"
        )
    dims = config.encoder.encoder_dim
    for stack in stacks:
        if not -len(dims) <= stack < len(dims):
            raise ValueError(
                f"{option}: no stack {stack}. Available: {-len(dims)} to "
                f"{len(dims) - 1}."
            )
    return [dims[stack] for stack in stacks]
