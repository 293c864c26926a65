"""The base class and the registry of terms, and the terms on transcripts."""

import dataclasses

import pytest
import torch
from term_inputs import LENS, TOKENS

from icefall_kd.distill import TERMS, TermsConfig, build_terms
from icefall_kd.distill.term import Term, TermOutput
from icefall_kd.distill.transducer import (
    CtcConfig,
    CtcTerm,
    TransducerConfig,
    TransducerTerm,
)
from icefall_kd.training.config import parse_config
from icefall_kd.training.student import DistilledStudent


@pytest.fixture
def batch():
    return {"tokens": list(TOKENS), "fields": {}}


DECLARED = {"name": "a", "options": CtcConfig, "frame_targets": False, "trains": ()}


@pytest.mark.parametrize(
    "attribute, wrong",
    [
        ("name", 3),
        ("options", dict),
        ("options", Term),
        ("frame_targets", None),
        ("trains", "ctc_output"),
        ("fields", "teacher"),
    ],
)
def test_a_term_with_a_wrong_attribute_is_refused(attribute, wrong):
    type("Complete", (Term,), dict(DECLARED))
    with pytest.raises(TypeError, match=f"class Wrong.*{attribute}"):
        type("Wrong", (Term,), {**DECLARED, attribute: wrong})


@pytest.mark.parametrize("attribute", DECLARED)
def test_a_term_without_a_needed_attribute_is_refused(attribute):
    declared = {k: v for k, v in DECLARED.items() if k != attribute}
    with pytest.raises(TypeError, match=f"class Incomplete.*{attribute}"):
        type("Incomplete", (Term,), declared)


@pytest.mark.parametrize("attribute", ["frame_targets", "trains"])
def test_a_term_must_not_inherit_frame_targets_or_trains(attribute):
    declared = {k: v for k, v in DECLARED.items() if k != attribute}
    with pytest.raises(TypeError, match=f"class Inheriting must set {attribute}"):
        type("Inheriting", (TERMS["essence"],), declared)


def test_a_term_that_trains_an_unknown_part_is_refused(student):
    term = type("Typo", (CtcTerm,), {**DECLARED, "trains": ("ctc_out",)})(CtcConfig())
    with pytest.raises(ValueError, match=r"terms\.a trains 'ctc_out'.*Typo"):
        DistilledStudent(student.model, [(1.0, term)], student.heads)


def test_a_new_term_needs_only_its_attributes_and_a_value(student, batch):
    class Energy(Term):
        """Mean energy of the encoder's output."""

        name, options, frame_targets, trains = "energy", CtcConfig, False, ()

        def __call__(self, student, batch, step):
            return TermOutput(student.encoder_out.square().sum(), len(student.lens))

    term = Energy(CtcConfig())
    assert term.build_heads(None, {}) is None and term.teacher_metric == "energy"
    assert not (term.needs_text or term.needs_stacks or term.fields or term.packages)
    assert term(student, batch, 0).count == 2


def test_every_term_has_its_options_in_the_configuration():
    assert {f.name for f in dataclasses.fields(TermsConfig)} == set(TERMS)
    for name, term in TERMS.items():
        assert term.name == name
        assert {f.name for f in dataclasses.fields(term.options)} >= {"weight"}


@pytest.mark.parametrize(
    "option, choices",
    [
        ("embedding.choose", "all.*random.*average"),
        ("hidden.project", "auto.*always"),
        ("inter_ctc.distance", "l2.*kl"),
    ],
)
def test_an_unknown_choice_is_refused_with_the_available_ones(option, choices):
    with pytest.raises(ValueError, match=f"terms.{option}.*{choices}"):
        parse_config(["--exp-dir", "x", f"--terms.{option}", "l9"])


def test_terms_of_weight_zero_are_off():
    terms = build_terms(
        TermsConfig(ctc=CtcConfig(weight=0.3), transducer=TransducerConfig(weight=0.0))
    )
    assert [(weight, term.name) for weight, term in terms] == [(0.3, "ctc")]
    with pytest.raises(ValueError, match=r"terms\.ctc\.weight: -1\.0"):
        build_terms(TermsConfig(ctc=CtcConfig(weight=-1.0)))
    with pytest.raises(ValueError, match="terms: no term .*embedding"):
        build_terms(TermsConfig())


@pytest.mark.parametrize("name", ["transducer", "ctc"])
def test_terms_on_transcripts_use_utterances_whose_transcript_fits(
    student, batch, name
):
    term = TERMS[name](TERMS[name].options())
    both = term(student, batch, 0)
    assert both.count == sum(LENS) and both.skipped == {}
    batch["tokens"][1] = []
    one = term(student, batch, 0)
    assert one.count == LENS[0] and one.skipped == {"no_text": [1]}
    batch["tokens"][0] = [1] * LENS[0]  # as many tokens as frames
    none = term(student, batch, 0)
    assert none.count == 0 and float(none.sum) == 0.0
    assert none.skipped == {"no_text": [1], "text_too_long": [0]}


@pytest.mark.parametrize("name", ["transducer", "ctc"])
def test_terms_on_transcripts_list_utterances_that_are_not_finite(student, batch, name):
    with torch.no_grad():
        student.encoder_out[1, 2] = float("nan")
    assert TERMS[name](TERMS[name].options())(student, batch, 0).suspects == (1,)


def test_the_transducer_term_warms_up(student, batch):
    term = TransducerTerm(TransducerConfig(warm_steps=100, simple_scale=0.5))
    assert term.scales(0) == (1.0, 0.1)
    assert term.scales(50) == pytest.approx((0.75, 0.55))
    assert term.scales(1000) == (0.5, 1.0)
    output = term(student, batch, 1000)
    simple, pruned = (output.extras[k][0] for k in ("simple", "pruned"))
    assert float(output.sum) == pytest.approx(0.5 * float(simple) + float(pruned))
    with pytest.raises(ValueError, match="terms.transducer.prune_range: 1"):
        TransducerTerm(TransducerConfig(prune_range=1))
