"""Fixtures: encoder output of a small student, and options of the ``lfmmi`` term."""

import pytest
import torch
from students import model_without_encoder
from term_inputs import DIM, LENS, STACKS, VOCAB
from torch import nn

from icefall_kd.distill.lfmmi import LfmmiConfig
from icefall_kd.distill.term import StudentOutput
from icefall_kd.transducer.bigram import make_bigram_table, save_bigram


@pytest.fixture
def student():
    """Random encoder output of two utterances; predictor, joiner and CTC head."""
    torch.manual_seed(1)
    return StudentOutput(
        torch.randn(2, max(LENS), DIM, requires_grad=True),
        torch.tensor(LENS),
        model_without_encoder(VOCAB, DIM),
        nn.ModuleDict(),
        chunk_size=16,
        stacks=tuple(
            torch.randn(2, 2 * max(LENS) - 1, dim, requires_grad=True) for dim in STACKS
        ),
    )


@pytest.fixture(scope="module")
def lfmmi(tmp_path_factory):
    """Options of the ``lfmmi`` term with a bigram of a few texts."""
    path = tmp_path_factory.mktemp("lm") / "bigram.pt"
    texts = [[1, 2, 3], [4, 4], [5, 8, 1], [2]]
    save_bigram(make_bigram_table(texts, VOCAB), "", path)
    return LfmmiConfig(teacher="first", bigram=str(path))
