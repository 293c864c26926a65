"""Front end and encoder from a configuration."""

from icefall_kd.config import ZipformerConfig
from icefall_kd.zipformer.encoder import Zipformer2
from icefall_kd.zipformer.schedules import ScheduledFloat, stretch_schedules
from icefall_kd.zipformer.subsampling import Conv2dSubsampling


def dropout_schedule(rate: float) -> ScheduledFloat:
    """Return a dropout that falls from ``rate`` to a third over 20000 batches."""
    return ScheduledFloat((0.0, rate), (20000.0, rate / 3.0))


def build_encoder(config: ZipformerConfig) -> tuple[Conv2dSubsampling, Zipformer2]:
    """Return the front end and the encoder that ``config`` describes.

    Raises:
      ValueError: if sizes do not fit together; the message names them.
    """
    encoder_embed = Conv2dSubsampling(
        feature_dim=config.feature_dim,
        output_dim=config.encoder_dim[0],
        channels=config.frontend_channels,
        convnext_expansion=config.convnext_expansion,
        dropout=dropout_schedule(config.dropout),
    )
    stretch_schedules(encoder_embed, config.warmup_batches)
    encoder = Zipformer2(
        output_downsampling_factor=config.output_downsampling_factor,
        downsampling_factor=config.downsampling_factor,
        encoder_dim=config.encoder_dim,
        num_encoder_layers=config.num_encoder_layers,
        encoder_unmasked_dim=config.encoder_unmasked_dim,
        query_head_dim=config.query_head_dim,
        pos_head_dim=config.pos_head_dim,
        value_head_dim=config.value_head_dim,
        num_heads=config.num_heads,
        feedforward_dim=config.feedforward_dim,
        cnn_module_kernel=config.cnn_module_kernel,
        pos_dim=config.pos_dim,
        dropout=dropout_schedule(config.dropout),
        warmup_batches=config.warmup_batches,
        causal=config.causal,
        chunk_size=config.chunk_size,
        left_context_frames=config.left_context_frames,
    )
    return encoder_embed, encoder
