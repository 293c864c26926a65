"""Heads of a checkpoint that are missing or untrained."""

import pytest
import torch

from icefall_kd.data.features import compute_fbank
from icefall_kd.decoding import DecodeOptions
from icefall_kd.recognition.recognise import decode_full_context
from icefall_kd.transducer.checkpoint import (
    TRAINED_BY_TERM,
    check_head,
    load_checkpoint,
    load_model,
    save_checkpoint,
    trained_parts,
)

TRANSDUCER = {"transducer": {"weight": 1.0}, "ctc": {"weight": 0.0}, "embedding": None}
CTC = {"transducer": None, "ctc": {"weight": 0.5}}


@pytest.fixture
def transducer_only(checkpoint, tmp_path):
    """A checkpoint without the weights of a CTC head."""
    saved = load_checkpoint(checkpoint)
    saved["model"] = {
        name: value
        for name, value in saved["model"].items()
        if not name.startswith("ctc_output.")
    }
    save_checkpoint(tmp_path / "a.pt", saved)
    return tmp_path / "a.pt"


def test_a_checkpoint_without_a_ctc_head_decodes_with_the_transducer(
    transducer_only, waves
):
    model, _, info = load_model(transducer_only)
    with pytest.raises(ValueError, match=r"a\.pt: the model has no ctc head"):
        check_head(model, "ctc", info, str(transducer_only))
    check_head(model, "transducer", info, str(transducer_only))
    features = compute_fbank([torch.from_numpy(next(iter(waves.values())))])
    assert decode_full_context(model, features, DecodeOptions())[0].tokens


@pytest.mark.parametrize(
    "terms, head, untrained",
    [(TRANSDUCER, "ctc", "ctc_output"), (CTC, "transducer", "decoder, joiner")],
)
def test_an_untrained_head_is_refused(student, terms, head, untrained):
    info = {"config": {"terms": terms, "init_model": None}}
    with pytest.raises(ValueError, match=rf"x.pt: no term.*\({untrained}\)"):
        check_head(student, head, info, "x.pt")


def test_a_head_that_may_be_trained_is_accepted(student):
    check_head(student, "ctc", {}, "x.pt")
    check_head(student, "ctc", {"config": {"terms": CTC}}, "x.pt")
    continued = {"config": {"terms": TRANSDUCER, "init_model": "exp/a/pretrained.pt"}}
    check_head(student, "ctc", continued, "x.pt")


def test_a_checkpoint_lists_the_parts_that_its_run_trained(student):
    info = {"config": {"terms": {"term_of_a_user": {"weight": 1.0}}}}
    with pytest.raises(ValueError, match="no term trained the ctc head"):
        check_head(student, "ctc", info, "x.pt")
    check_head(student, "ctc", {**info, "trained_parts": ["ctc_output"]}, "x.pt")


def test_trained_parts_follow_from_the_terms_of_an_older_checkpoint():
    def trained(terms):
        return trained_parts({"config": {"terms": terms}})

    assert "ctc_output" not in trained(TRANSDUCER)
    assert trained(CTC) == {"ctc_output"}
    assert trained({"ctc": {"weight": 0.0}}) == set()
    assert trained({"unknown": {"weight": 1.0}}) == set()
    assert trained({"inter_ctc": {"weight": 1.0, "final": False}}) == set()
    for name, parts in TRAINED_BY_TERM.items():
        assert trained({name: {"weight": 1.0}}) == set(parts)
