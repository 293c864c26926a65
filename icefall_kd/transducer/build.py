"""Build the student from its configuration."""

from collections.abc import Sequence

from icefall_kd.core.config import ModelConfig
from icefall_kd.transducer.field_encoder import FieldModel
from icefall_kd.transducer.model import AsrModel, Decoder, Joiner
from icefall_kd.zipformer.encoder import build_encoder


def build_model(config: ModelConfig) -> AsrModel:
    """Return a freshly initialised student of the given shape.

    Raises:
      ValueError: if ``config.vocab_size`` leaves no room beside the blank.
    """
    if config.vocab_size < 2:
        raise ValueError(
            f"vocab_size counts the blank and must be at least 2, got "
            f"{config.vocab_size}"
        )
    dim = encoder_dim(config)
    parts = {
        "decoder": Decoder(config.vocab_size, config.decoder_dim, config.context_size),
        "joiner": Joiner(dim, config.decoder_dim, config.joiner_dim, config.vocab_size),
        "encoder_dim": dim,
        "decoder_dim": config.decoder_dim,
        "vocab_size": config.vocab_size,
    }
    if config.field_encoder is not None:
        return FieldModel(config.field_encoder, **parts)
    encoder_embed, encoder = build_encoder(config.encoder)
    return AsrModel(encoder_embed=encoder_embed, encoder=encoder, **parts)


def encoder_dim(config: ModelConfig) -> int:
    """Return C, the size of a frame of the encoder's output."""
    if config.field_encoder is not None:
        return config.field_encoder.dim
    # The encoder joins its stacks at full width, so its output has the widest's.
    return max(config.encoder.encoder_dim)


def stack_dims(config: ModelConfig, stacks: Sequence[int], option: str) -> list[int]:
    """Return C_i, the size of a frame of some stacks of the encoder.

    Args:
      stacks: counted from 0; negative from the end.
      option: for the message, what named them.
    Raises:
      ValueError: if there is no such stack, or the encoder has none.
    """
    if config.field_encoder is not None:
        raise ValueError(
            f"{option}: an encoder over teachers' embeddings has no stacks"
        )
    dims = config.encoder.encoder_dim
    for stack in stacks:
        if not -len(dims) <= stack < len(dims):
            raise ValueError(f"{option}: no stack {stack}, there are {len(dims)}")
    return [dims[stack] for stack in stacks]
