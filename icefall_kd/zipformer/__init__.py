"""Zipformer: front end, encoder, streaming."""

from icefall_kd.zipformer.encoder import Zipformer2, build_encoder
from icefall_kd.zipformer.regularisers import (
    Balancer,
    ScheduledFloat,
    Whiten,
    set_batch_count,
)
from icefall_kd.zipformer.scaling import scaled_linear
from icefall_kd.zipformer.streaming import init_states, streaming_forward
from icefall_kd.zipformer.subsampling import (
    Conv2dSubsampling,
    conv2d_subsampling_lens,
    encoder_output_lens,
)

__all__ = [
    "Balancer",
    "Conv2dSubsampling",
    "ScheduledFloat",
    "Whiten",
    "Zipformer2",
    "build_encoder",
    "conv2d_subsampling_lens",
    "encoder_output_lens",
    "init_states",
    "scaled_linear",
    "set_batch_count",
    "streaming_forward",
]
