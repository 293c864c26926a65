"""The joiner."""

import pytest
import torch

from icefall_kd.transducer.model import Joiner


def test_projecting_before_or_inside_is_the_same():
    torch.manual_seed(0)
    joiner = Joiner(encoder_dim=6, decoder_dim=8, joiner_dim=5, vocab_size=7)
    enc, dec = torch.randn(2, 4, 6), torch.randn(2, 4, 8)
    once = joiner(joiner.encoder_proj(enc), joiner.decoder_proj(dec), False)
    assert once.shape == (2, 4, 7)
    torch.testing.assert_close(joiner(enc, dec), once)


def test_different_numbers_of_axes_are_refused():
    joiner = Joiner(encoder_dim=6, decoder_dim=8, joiner_dim=5, vocab_size=7)
    with pytest.raises(ValueError, match="number of axes"):
        joiner(torch.randn(2, 4, 6), torch.randn(2, 8))
