"""Heads that are not there, and heads that nothing trained."""

import pytest
import torch

from icefall_kd.data.features import compute_fbank
from icefall_kd.decoding import DecodeOptions
from icefall_kd.recognition.recognise import decode_full_context
from icefall_kd.transducer.checkpoint import (
    check_head,
    load_checkpoint,
    load_model,
    save_checkpoint,
    trained_parts,
)

TRANSDUCER = {"transducer": {"weight": 1.0}, "ctc": {"weight": 0.0}, "embedding": None}
CTC = {"transducer": None, "ctc": {"weight": 0.5}}


@pytest.fixture
def transducer_alone(checkpoint, tmp_path):
    """A checkpoint that has no weights of a CTC head."""
    held = load_checkpoint(checkpoint)
    held["model"] = {
        name: value
        for name, value in held["model"].items()
        if not name.startswith("ctc_output.")
    }
    save_checkpoint(tmp_path / "a.pt", held)
    return tmp_path / "a.pt"


def test_a_checkpoint_without_ctc_head_serves_the_transducer_alone(
    transducer_alone, waves
):
    model, _, info = load_model(transducer_alone)
    with pytest.raises(ValueError, match=r"a\.pt: the model has no ctc head"):
        check_head(model, "ctc", info, str(transducer_alone))
    check_head(model, "transducer", info, str(transducer_alone))
    features = compute_fbank([torch.from_numpy(next(iter(waves.values())))])
    assert decode_full_context(model, features, DecodeOptions())[0].tokens


@pytest.mark.parametrize(
    "terms, head, untrained",
    [(TRANSDUCER, "ctc", "ctc_output"), (CTC, "transducer", "decoder, joiner")],
)
def test_a_head_that_no_term_trained_is_refused(student, terms, head, untrained):
    info = {"config": {"terms": terms, "init_model": None}}
    with pytest.raises(ValueError, match=rf"x.pt: no term.*\({untrained}\)"):
        check_head(student, head, info, "x.pt")


def test_a_head_that_may_be_trained_is_taken(student):
    check_head(student, "ctc", {}, "x.pt")
    check_head(student, "ctc", {"config": {"terms": CTC}}, "x.pt")
    went_on = {"config": {"terms": TRANSDUCER, "init_model": "exp/a/pretrained.pt"}}
    check_head(student, "ctc", went_on, "x.pt")


def test_terms_of_no_weight_train_nothing():
    assert "ctc_output" not in trained_parts(TRANSDUCER)
    assert trained_parts(CTC) == {"ctc_output"}
    assert trained_parts({"of another version": {"weight": 1.0}}) == set()


def test_every_term_says_which_heads_it_trains():
    from icefall_kd.distill.terms import TERMS

    parts = {name: trained_parts({name: {"weight": 1.0}}) for name in TERMS}
    assert parts["embedding"] == set() and "ctc_output" in parts["inter_ctc"]
    assert {"decoder", "joiner"} <= parts["one_best"]
    on_stacks = {"inter_ctc": {"weight": 1.0, "stacks": [1], "final": False}}
    assert trained_parts(on_stacks) == set()
    assert trained_parts({"ctc": {"weight": 0.0}}) == set()
