"""The student as a whole."""

import torch

from icefall_kd.core.config import ModelConfig, ZipformerConfig
from icefall_kd.transducer.model import build_model

SMALL = ModelConfig(
    encoder=ZipformerConfig(
        frontend_channels=(2, 4, 8),
        convnext_expansion=1,
        downsampling_factor=(1, 2),
        num_encoder_layers=(1, 1),
        encoder_dim=(16, 24),
        encoder_unmasked_dim=(16, 16),
        feedforward_dim=(16, 24),
        num_heads=(2,),
        query_head_dim=(8,),
        value_head_dim=(8,),
        cnn_module_kernel=(7,),
    ),
    vocab_size=10,
    decoder_dim=16,
    joiner_dim=16,
)


def test_autocast_on_a_cpu_spares_the_stacks_of_the_encoder():
    torch.manual_seed(0)
    model = build_model(SMALL)
    kinds = {}
    for part in ("encoder_embed.conv.7", "encoder.encoders.0.layers.0.self_attn1"):
        model.get_submodule(part).register_forward_hook(
            lambda module, inputs, out, part=part: kinds.update(
                {part: (out[0] if isinstance(out, tuple) else out).dtype}
            )
        )
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = model.forward_encoder(torch.randn(2, 60, 80), torch.tensor([60, 50]))
    assert list(kinds.values()) == [torch.bfloat16, torch.float32]
    assert out.dtype == torch.float32


def test_the_ctc_head_s_probabilities_add_up_under_autocast():
    torch.manual_seed(0)
    model = build_model(SMALL).eval()
    with torch.autocast("cpu", torch.bfloat16):
        log_probs = model.ctc_output(5 * torch.randn(2, 50, model.encoder_dim))
    assert log_probs.dtype == torch.float32
    assert (log_probs.exp().sum(-1) - 1).abs().max() < 1e-5
