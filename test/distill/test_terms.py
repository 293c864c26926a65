"""The terms: padding, order and weights against slow references."""

import dataclasses

import embeddings
import numpy as np
import pytest
import torch
from embeddings import DIM, LENS, embedding, without_target

from icefall_kd.core.frames import align_frames
from icefall_kd.distill.embedding import EmbeddingConfig, EmbeddingTerm
from icefall_kd.distill.losses import FRAME_LOSSES
from icefall_kd.distill.terms import TERMS, TermsConfig, build_terms, check_declarations
from icefall_kd.distill.transducer import CtcConfig, TransducerConfig, TransducerTerm

infos, batch, student = embeddings.infos, embeddings.batch, embeddings.student

SLOW = {
    "l1": lambda s, t: np.abs(s - t).mean(),
    "l2": lambda s, t: ((s - t) ** 2).mean(),
    "cosine": lambda s, t: 1 - s @ t / np.sqrt((s @ s) * (t @ t)),
}


def slow_embedding(term, student, batch, infos, delay=0):
    """Frame by frame, utterance by utterance, without any padding."""
    total = 0.0
    for name, weight in term.teachers.items():
        field, info = batch["fields"][name], infos[name]
        head = student.heads["embedding"][name]
        for n, frames in enumerate(LENS):
            valid = field["lens"][n : n + 1]
            x = field["x"][n : n + 1, : int(valid)]
            aligned = align_frames(
                x, valid, field["frame_shift"], torch.tensor([frames])
            )
            target = (aligned[0].numpy() - info.mean) / np.array(info.std)
            guess = head.proj(student.encoder_out[n, :frames]).detach().numpy()
            for t in range(delay, frames):
                for kind, scale in term.losses.items():
                    value = SLOW[kind](guess[t].astype(float), target[t - delay])
                    total += weight * scale * value
    return total


@pytest.mark.parametrize("losses", [{"l1": 1.0}, {"l2": 0.5, "cosine": 2.0}])
@pytest.mark.parametrize("delay", [0, 3])
def test_embedding_equals_the_slow_reference(student, infos, batch, losses, delay):
    term, student = embedding(student, infos, losses=losses, delay=delay)
    output = term(student, batch, 0)
    slow = slow_embedding(term, student, batch, infos, delay)
    assert float(output.sum) == pytest.approx(slow, rel=1e-4)
    assert output.count == sum(LENS) - 2 * delay


def test_embedding_ignores_padding(student, infos, batch):
    term, student = embedding(student, infos, losses={"l2": 1.0, "cosine": 1.0})
    before = term(student, batch, 0)
    before.sum.backward()
    gradient = student.encoder_out.grad.clone()
    assert gradient[1, LENS[1] :].abs().sum() == 0
    assert gradient[1, : LENS[1]].abs().sum() > 0
    batch["fields"]["wise"]["x"][1, 30:] = 1e6
    with torch.no_grad():
        student.encoder_out[1, LENS[1] :] = 1e6
    assert float(term(student, batch, 0).sum) == pytest.approx(float(before.sum))


def test_embedding_does_not_depend_on_the_order_of_the_batch(student, infos, batch):
    term, student = embedding(student, infos)
    before = float(term(student, batch, 0).sum)
    for field in batch["fields"].values():
        field["x"], field["lens"] = field["x"].flip(0), field["lens"].flip(0)
    flipped = dataclasses.replace(
        student, encoder_out=student.encoder_out.flip(0), lens=student.lens.flip(0)
    )
    assert float(term(flipped, batch, 0).sum) == pytest.approx(before)


def test_a_perfect_student_has_no_loss(student, infos, batch):
    term, student = embedding(student, infos, teachers={"old": 1.0, "wise": 0.0})
    assert term.fields == ("old",)  # weight 0 is as if it were not there
    head = student.heads["embedding"]["old"]
    field = batch["fields"]["old"]
    target = head.normalise(align_frames(field["x"], field["lens"], 0.04, student.lens))
    encoder_out = torch.cat([target, torch.zeros(2, max(LENS), DIM - 3)], dim=2)
    with torch.no_grad():
        head.proj.weight.copy_(torch.eye(DIM)[:3])
        head.proj.bias.zero_()
    perfect = dataclasses.replace(student, encoder_out=encoder_out)
    assert float(term(perfect, batch, 0).sum) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("row", [0, 1])
def test_embedding_uses_the_utterances_with_a_target_alone(student, infos, batch, row):
    term, student = embedding(student, infos, losses={"l1": 1.0, "cosine": 0.5})
    for field in batch["fields"].values():
        without_target(field, row)
    output = term(student, batch, 0)
    other = 1 - row
    fields = {
        name: {
            "x": field["x"][other : other + 1],
            "lens": field["lens"][other : other + 1],
            "frame_shift": field["frame_shift"],
        }
        for name, field in batch["fields"].items()
    }
    alone = dataclasses.replace(
        student,
        encoder_out=student.encoder_out[other : other + 1, : LENS[other]],
        lens=student.lens[other : other + 1],
    )
    expected = term(alone, {**batch, "fields": fields}, 0)
    assert float(output.sum) == pytest.approx(float(expected.sum), rel=1e-5)
    assert output.count == expected.count == LENS[other]
    assert (output.skipped, expected.skipped) == ({"no_target": [row]}, {})
    for name, (value, frames) in expected.extras.items():
        assert output.extras[name][1] == frames == LENS[other]
        assert float(output.extras[name][0]) == pytest.approx(float(value), rel=1e-5)
    output.sum.backward()
    gradient = student.encoder_out.grad
    assert gradient[row].abs().sum() == 0 and gradient[other].abs().sum() > 0


def test_each_teacher_counts_its_own_targets(student, infos, batch):
    term, student = embedding(student, infos)
    without_target(batch["fields"]["old"], 1)
    output = term(student, batch, 0)
    assert output.extras["old_l1"][1] == LENS[0]
    assert output.extras["wise_l1"][1] == sum(LENS)
    assert output.count == sum(LENS) and output.skipped == {}


def test_a_batch_without_any_target_counts_nothing(student, infos, batch):
    term, student = embedding(student, infos)
    empty = {"x": torch.zeros(2, 0, 0), "lens": torch.zeros(2).long()}
    batch["fields"]["wise"] = batch["fields"]["old"] = {**empty, "frame_shift": 0.0}
    output = term(student, batch, 0)
    assert (output.count, float(output.sum)) == (0, 0.0)
    assert output.skipped == {"no_target": [0, 1]}


def test_a_delay_is_none_with_full_context(student, infos, batch):
    for choose in ("all", "average"):
        options = {"choose": choose, "teachers": {"wise": 1.0}}
        full = dataclasses.replace(student, chunk_size=-1)
        at_once, late = (
            term(s, batch, 0)
            for term, s in (embedding(full, infos, **options, delay=d) for d in (0, 3))
        )
        assert float(late.sum) == float(at_once.sum) and late.count == sum(LENS)


def test_every_term_declares_whether_its_targets_are_frames():
    check_declarations(TERMS)
    framed = {name for name, term in TERMS.items() if term.frame_targets}
    assert framed == set(TERMS) - {"ctc", "transducer"}
    forgetful = type("Forgetful", (TERMS["essence"],), {})  # inherited is not declared
    with pytest.raises(TypeError, match="'new': class Forgetful declares no frame_t"):
        check_declarations({**TERMS, "new": forgetful})


def test_a_delay_longer_than_the_audio_counts_nothing(student, infos, batch):
    term, student = embedding(student, infos, delay=40)
    output = term(student, batch, 0)
    assert output.count == 0 and float(output.sum) == 0.0
    assert output.skipped == {"too_short": [0, 1]}


def test_frame_losses_refuse_different_shapes():
    for loss in FRAME_LOSSES.values():
        with pytest.raises(ValueError, match="shapes differ"):
            loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), torch.zeros(1, 2).bool())


@pytest.mark.parametrize(
    "options, match",
    [
        ({"losses": {"l9": 1.0}}, r"unknown \['l9'\]"),
        ({"teachers": {}}, "at least one teacher"),
        ({"losses": {"l1": 0.0}}, "at least one teacher"),
        ({"delay": -1}, "delay is -1"),
        ({"choose": "best"}, "choose is 'best'"),
        ({"choose": "random", "teachers": {"wise": -1.0}}, "weight of .* is negative"),
    ],
)
def test_impossible_embedding_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        EmbeddingTerm(EmbeddingConfig(**{"teachers": {"wise": 1.0}, **options}))


@pytest.mark.parametrize("name", ["transducer", "ctc"])
def test_text_terms_use_the_utterances_that_fit_and_count_the_others(
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


def test_text_terms_name_utterances_that_are_not_finite(student, batch):
    with torch.no_grad():
        student.encoder_out[1, 2] = float("nan")
    for name in ("transducer", "ctc"):
        term = TERMS[name](TERMS[name].options())
        assert term(student, batch, 0).suspects == (1,)


def test_the_transducer_warms_up(student, batch):
    term = TransducerTerm(TransducerConfig(warm_steps=100, simple_scale=0.5))
    assert term.scales(0) == (1.0, 0.1)
    assert term.scales(50) == pytest.approx((0.75, 0.55))
    assert term.scales(1000) == (0.5, 1.0)
    output = term(student, batch, 1000)
    simple, pruned = (output.extras[k][0] for k in ("simple", "pruned"))
    assert float(output.sum) == pytest.approx(0.5 * float(simple) + float(pruned))


def test_every_term_has_its_options_in_the_configuration():
    fields = {f.name for f in dataclasses.fields(TermsConfig)}
    assert fields == set(TERMS)
    for name, term in TERMS.items():
        assert term.name == name
        assert {f.name for f in dataclasses.fields(term.options)} >= {"weight"}


def test_terms_without_weight_are_off():
    terms = build_terms(
        TermsConfig(ctc=CtcConfig(weight=0.3), transducer=TransducerConfig(weight=0.0))
    )
    assert [(weight, term.name) for weight, term in terms] == [(0.3, "ctc")]
    with pytest.raises(ValueError, match="below zero"):
        build_terms(TermsConfig(ctc=CtcConfig(weight=-1.0)))
    with pytest.raises(ValueError, match="no term is on"):
        build_terms(TermsConfig())
