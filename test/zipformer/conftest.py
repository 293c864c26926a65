"""Fixtures: a small Zipformer, causal or not."""

import dataclasses

import pytest
import torch

from icefall_kd.core.config import ZipformerConfig
from icefall_kd.zipformer.encoder import build_encoder

SMALL = ZipformerConfig(
    frontend_channels=(2, 4, 8),
    convnext_expansion=1,
    downsampling_factor=(1, 4, 2),
    num_encoder_layers=(1, 2, 1),
    encoder_dim=(16, 32, 24),
    encoder_unmasked_dim=(16, 24, 16),
    feedforward_dim=(16, 32, 24),
    num_heads=(2, 4, 2),
    query_head_dim=(8,),
    value_head_dim=(8, 4, 8),
    pos_dim=16,
    cnn_module_kernel=(15, 7, 15),
)


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: small tensors are slower on several."""
    torch.set_num_threads(1)


@pytest.fixture
def make_encoder():
    """Return a function that builds (front end, encoder) with random weights."""

    def make(seed=0, **changes):
        torch.manual_seed(seed)
        embed, encoder = build_encoder(dataclasses.replace(SMALL, **changes))
        with torch.no_grad():
            for p in [*embed.parameters(), *encoder.parameters()]:
                p.add_(0.1 * torch.randn_like(p))
        return embed.eval(), encoder.eval()

    return make
