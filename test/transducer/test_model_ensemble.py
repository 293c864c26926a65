"""The mean of several models, compared with one node at a time."""

import pytest
import torch

from icefall_kd.core.config import FieldEncoderConfig, ModelConfig
from icefall_kd.transducer.field_encoder import ModelEnsemble
from icefall_kd.transducer.model import build_model
from icefall_kd.transducer.path import best_path, count_emitted

VOCAB, FRAMES, TOKENS = 7, 9, [3, 1, 4]


def teacher_model(seed, *fields):
    torch.manual_seed(seed)
    dims = tuple({"wise": 6, "old": 3}[name] for name in fields)
    config = FieldEncoderConfig(fields=fields, dims=dims, dim=8, num_layers=1)
    model = build_model(
        ModelConfig(field_encoder=config, vocab_size=VOCAB, decoder_dim=8, joiner_dim=8)
    ).eval()
    for p in model.parameters():
        if p.dim() > 1:  # far from even distributions
            torch.nn.init.normal_(p)
    return model


@pytest.fixture
def ensemble():
    return ModelEnsemble([teacher_model(0, "wise"), teacher_model(1, "old", "wise")])


@pytest.fixture
def encoded(ensemble):
    torch.manual_seed(2)
    lens = torch.tensor([FRAMES])

    def field(dim):
        return {"x": torch.randn(1, FRAMES, dim), "lens": lens, "frame_shift": 0.04}

    batch = {
        "fields": {"wise": field(6), "old": field(3)},
        "feature_lens": torch.tensor([4 * FRAMES + 7]),
    }
    with torch.no_grad():
        found, found_lens = ensemble.encode(batch)
    assert found_lens.tolist() == [FRAMES]
    return found


@torch.no_grad()
def mean_at_node(ensemble, encoded, t, before):
    """Return the mean of the models' probabilities at frame t after tokens."""
    total = torch.zeros(VOCAB)
    for model, x in zip(ensemble.models, encoded):
        decoder_out = model.decoder(torch.tensor([[0, *before]]))[:, -1]
        total += model.joiner(x[:, t], decoder_out)[0].softmax(-1)
    return total / len(encoded)


@torch.no_grad()
def test_every_node_has_the_mean_of_all_models(ensemble, encoded):
    lattice = ensemble.score_lattice(encoded, TOKENS)
    assert lattice.shape == (FRAMES, len(TOKENS) + 1, VOCAB)
    emitted = best_path(lattice, TOKENS)
    on_path = ensemble.score_path(encoded, emitted[None])[0]
    for t, u in enumerate(count_emitted(emitted).tolist()):
        for k in range(len(TOKENS) + 1):
            expected = mean_at_node(ensemble, encoded, t, TOKENS[:k])
            torch.testing.assert_close(lattice[t, k].exp(), expected)
        torch.testing.assert_close(on_path[t], lattice[t, u])
    ctc = sum(m.ctc_output(x).exp() for m, x in zip(ensemble.models, encoded)) / 2
    torch.testing.assert_close(ensemble.score_ctc(encoded).exp(), ctc)
    assert ensemble.fields == ("wise", "old")


@torch.no_grad()
def test_the_mean_of_one_model_is_its_output(ensemble, encoded):
    model, x = ensemble.models[1], encoded[1]
    alone = ModelEnsemble([model])
    assert torch.equal(alone.score_ctc([x]), model.ctc_output(x))
    emitted = torch.tensor([[0, 3, 0, 0, 1, 0, 4, 0, 0]])
    twice = ModelEnsemble([model, model]).score_path([x, x], emitted)
    torch.testing.assert_close(alone.score_path([x], emitted), twice)
