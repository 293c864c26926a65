"""The predictor, the joiner and the student."""

import pytest
import torch

from icefall_kd.core.config import ModelConfig, ZipformerConfig
from icefall_kd.transducer.model import Decoder, Joiner, build_model

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


def test_predictor_depends_only_on_its_context():
    torch.manual_seed(0)
    decoder = Decoder(vocab_size=10, decoder_dim=8, context_size=2)
    y = torch.tensor([[0, 3, 5, 7]])
    out = decoder(y)
    assert out.shape == (1, 4, 8)
    for u in range(1, 4):
        step = decoder(y[:, u - 1 : u + 1], need_pad=False)
        torch.testing.assert_close(step[:, 0], out[:, u])


def test_negative_ids_equal_padding():
    torch.manual_seed(0)
    decoder = Decoder(vocab_size=10, decoder_dim=8, context_size=2)
    padded = decoder(torch.tensor([[4]]))  # left-padded with zeros
    started = decoder(torch.tensor([[-1, 4]]), need_pad=False)
    torch.testing.assert_close(padded, started)


def test_predictor_with_context_of_one_has_no_convolution():
    decoder = Decoder(vocab_size=10, decoder_dim=8, context_size=1)
    assert set(decoder.state_dict()) == {"embedding.weight"}
    assert decoder(torch.tensor([[1, -1]]))[0, 1].abs().sum() == 0


def test_predictor_has_the_state_dict_keys_of_icefall():
    decoder = Decoder(vocab_size=10, decoder_dim=8)
    shapes = {k: tuple(v.shape) for k, v in decoder.state_dict().items()}
    assert shapes == {"embedding.weight": (10, 8), "conv.weight": (8, 4, 2)}


def test_wrong_predictor_sizes_are_refused():
    with pytest.raises(ValueError, match="context_size"):
        Decoder(10, 8, context_size=0)
    with pytest.raises(ValueError, match="multiple of 4"):
        Decoder(10, 6)


def test_joiner_with_projected_input_is_the_same():
    torch.manual_seed(0)
    joiner = Joiner(encoder_dim=6, decoder_dim=8, joiner_dim=5, vocab_size=7)
    enc, dec = torch.randn(2, 4, 6), torch.randn(2, 4, 8)
    once = joiner(joiner.encoder_proj(enc), joiner.decoder_proj(dec), False)
    assert once.shape == (2, 4, 7)
    torch.testing.assert_close(joiner(enc, dec), once)


def test_joiner_refuses_different_numbers_of_axes():
    joiner = Joiner(encoder_dim=6, decoder_dim=8, joiner_dim=5, vocab_size=7)
    with pytest.raises(ValueError, match="number of axes"):
        joiner(torch.randn(2, 4, 6), torch.randn(2, 8))


def test_stacks_of_the_encoder_ignore_autocast_on_a_cpu():
    torch.manual_seed(0)
    model = build_model(SMALL)
    dtypes = {}
    for part in ("encoder_embed.conv.7", "encoder.encoders.0.layers.0.self_attn1"):
        model.get_submodule(part).register_forward_hook(
            lambda module, inputs, out, part=part: dtypes.update(
                {part: (out[0] if isinstance(out, tuple) else out).dtype}
            )
        )
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = model.forward_encoder(torch.randn(2, 60, 80), torch.tensor([60, 50]))
    assert list(dtypes.values()) == [torch.bfloat16, torch.float32]
    assert out.dtype == torch.float32


def test_ctc_probabilities_sum_to_one_under_autocast():
    torch.manual_seed(0)
    model = build_model(SMALL).eval()
    with torch.autocast("cpu", torch.bfloat16):
        log_probs = model.ctc_output(5 * torch.randn(2, 50, model.encoder_dim))
    assert log_probs.dtype == torch.float32
    assert (log_probs.exp().sum(-1) - 1).abs().max() < 1e-5
