"""Fixtures: embeddings of two teachers, and a student behind its encoder."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from students import model_without_encoder
from torch import nn

from icefall_kd.core.config import ModelConfig, ZipformerConfig
from icefall_kd.distill.embedding import EmbeddingConfig, EmbeddingTerm
from icefall_kd.distill.term import StudentOutput

DIM, VOCAB = 6, 9
LENS = [23, 13]  # student frames of 1 s and 0.6 s
MODEL = ModelConfig(
    encoder=ZipformerConfig(
        downsampling_factor=(1,),
        num_encoder_layers=(1,),
        encoder_dim=(DIM,),
        encoder_unmasked_dim=(DIM,),
        feedforward_dim=(8,),
        num_heads=(1,),
        cnn_module_kernel=(7,),
    )
)


@pytest.fixture
def infos():
    rng = np.random.default_rng(0)
    return {
        name: SimpleNamespace(
            mean=rng.normal(size=dim).tolist(), std=rng.uniform(1, 3, dim).tolist()
        )
        for name, dim in (("wise", 5), ("old", 3))
    }


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return {
        "tokens": [[3, 1, 4], [5, 5]],
        "fields": {
            "wise": {
                "x": torch.randn(2, 50, 5),
                "lens": torch.tensor([50, 30]),
                "frame_shift": 0.02,
            },
            "old": {
                "x": torch.randn(2, 25, 3),
                "lens": torch.tensor([25, 15]),
                "frame_shift": 0.04,
            },
        },
    }


@pytest.fixture
def student():
    """A student behind its encoder; the rest of it is real."""
    torch.manual_seed(1)
    model = model_without_encoder(VOCAB, DIM)
    encoder_out = torch.randn(2, max(LENS), DIM, requires_grad=True)
    return StudentOutput(encoder_out, torch.tensor(LENS), model, nn.ModuleDict(), 16)


def embedding(student, infos, **options):
    torch.manual_seed(2)
    term = EmbeddingTerm(
        EmbeddingConfig(
            **{"teachers": {"wise": 0.7, "old": 0.3}, "losses": {"l1": 1.0}, **options}
        )
    )
    heads = nn.ModuleDict({"embedding": term.build_heads(MODEL, infos)})
    return term, dataclasses.replace(student, heads=heads)


def without_target(field, row):
    """The field with utterance ``row`` as a batch has it that lacks its target."""
    field["lens"][row] = 0
    field["x"][row] = 0.0
