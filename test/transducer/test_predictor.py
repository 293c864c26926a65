"""The stateless predictor."""

import pytest
import torch

from icefall_kd.transducer.model import Decoder


def test_each_position_sees_only_its_context():
    torch.manual_seed(0)
    decoder = Decoder(vocab_size=10, decoder_dim=8, context_size=2)
    y = torch.tensor([[0, 3, 5, 7]])
    out = decoder(y)
    assert out.shape == (1, 4, 8)
    for u in range(1, 4):
        step = decoder(y[:, u - 1 : u + 1], need_pad=False)
        torch.testing.assert_close(step[:, 0], out[:, u])


def test_negative_ids_are_as_if_nothing_was_there():
    torch.manual_seed(0)
    decoder = Decoder(vocab_size=10, decoder_dim=8, context_size=2)
    padded = decoder(torch.tensor([[4]]))  # left-padded with zeros
    started = decoder(torch.tensor([[-1, 4]]), need_pad=False)
    torch.testing.assert_close(padded, started)


def test_context_of_one_has_no_convolution():
    decoder = Decoder(vocab_size=10, decoder_dim=8, context_size=1)
    assert set(decoder.state_dict()) == {"embedding.weight"}
    assert decoder(torch.tensor([[1, -1]]))[0, 1].abs().sum() == 0


def test_state_dict_has_the_fields_names():
    decoder = Decoder(vocab_size=10, decoder_dim=8)
    shapes = {k: tuple(v.shape) for k, v in decoder.state_dict().items()}
    assert shapes == {"embedding.weight": (10, 8), "conv.weight": (8, 4, 2)}


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="context_size"):
        Decoder(10, 8, context_size=0)
    with pytest.raises(ValueError, match="multiple of 4"):
        Decoder(10, 6)
