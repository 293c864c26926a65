"""A predictor and a joiner with random weights, for searches."""

from types import SimpleNamespace

import torch

from icefall_kd.transducer.model import Decoder, Joiner

VOCAB, DIM, UNK = 11, 16, 2


def random_model(seed: int, context_size: int = 2) -> SimpleNamespace:
    """A predictor and a joiner that emit often and disagree with themselves."""
    torch.manual_seed(seed)
    decoder = Decoder(VOCAB, DIM, context_size).eval()
    joiner = Joiner(DIM, DIM, DIM, VOCAB).eval()
    with torch.no_grad():
        for p in joiner.parameters():
            p.copy_(torch.randn_like(p))
        for p in decoder.parameters():
            p.mul_(2)
    return SimpleNamespace(decoder=decoder, joiner=joiner)
