"""The ``lfmmi`` term: divergence of label sequences, padding, order and options."""

import dataclasses
import itertools
import math

import pytest
import torch
from term_inputs import (
    LENS,
    VOCAB,
    build,
    distribution_batch,
    distribution_infos,
    reverse_batch,
)

from icefall_kd.distill.lfmmi import (
    LfmmiConfig,
    LfmmiTerm,
    compute_sequence_divergence,
    make_dense_log_probs,
)
from icefall_kd.transducer.bigram import make_bigram_table, save_bigram


@pytest.fixture
def batch():
    return distribution_batch()


@pytest.fixture
def infos():
    return distribution_infos()


def score_all_sequences(student, teacher):
    """Return the score of each label sequence, of the student and of the teacher."""
    of_student, of_teacher = [], []
    for path in itertools.product(range(VOCAB), repeat=len(student)):
        for log_probs, scores in ((student, of_student), (teacher, of_teacher)):
            scores.append(sum(float(log_probs[t, p]) for t, p in enumerate(path)))
    return torch.tensor(of_student).double(), torch.tensor(of_teacher).double()


def test_the_value_is_the_divergence_of_label_sequences(student, batch, infos, lfmmi):
    term, student = build(LfmmiTerm(lfmmi), student, infos)
    lens = [3, 2]
    log_probs = student.model.ctc_output(student.encoder_out[:, :3]).detach()
    teacher = make_dense_log_probs(batch["fields"]["first"]["x"][:, :3], VOCAB)
    found = compute_sequence_divergence(
        log_probs, teacher, torch.tensor(lens), term.bigram
    )
    for n, frames in enumerate(lens):
        paths = list(itertools.product(range(VOCAB), repeat=frames))
        language = torch.tensor([score_in_bigram(term.bigram, p) for p in paths])
        s, t = score_all_sequences(log_probs[n, :frames], teacher[n, :frames])
        p, q = ((x + language).log_softmax(0) for x in (s, t))
        expected = (q.exp() * (q - p)).sum()
        assert float(found[n]) == pytest.approx(float(expected), abs=1e-3)


def score_in_bigram(bigram, path):
    """Return the bigram's score of a label sequence, with its end."""
    tokens = [label for label, _ in itertools.groupby(path) if label != 0]
    total = sum(float(bigram[pair]) for pair in zip([0, *tokens], tokens))
    last = tokens[-1] if tokens else 0
    return total + math.log(1.0 - float(bigram[last, 1:].double().exp().sum()))


def test_a_copy_of_the_teacher_has_no_loss(student, batch, infos, lfmmi):
    term, _ = build(LfmmiTerm(lfmmi), student, infos)
    teacher = make_dense_log_probs(batch["fields"]["first"]["x"], VOCAB)
    same = teacher.clone().requires_grad_()
    found = compute_sequence_divergence(same, teacher, torch.tensor(LENS), term.bigram)
    torch.testing.assert_close(found, torch.zeros(2).double(), atol=1e-3, rtol=0)
    found.sum().backward()
    assert same.grad.abs().max() < 1e-3


@pytest.mark.parametrize("delay", [0, 2])
def test_padding_and_order_are_ignored(student, batch, infos, lfmmi, delay):
    options = dataclasses.replace(lfmmi, delay=delay)
    term, student = build(LfmmiTerm(options), student, infos)
    before = term(student, batch, 0)
    before.sum.backward()
    assert student.encoder_out.grad[1, LENS[1] :].abs().sum() == 0
    assert before.count == sum(LENS) - 2 * delay and float(before.sum) > 0
    batch["fields"]["first"]["x"][1, LENS[1] :] = 1.0
    with torch.no_grad():
        student.encoder_out[1, LENS[1] :] = 50.0
    after = float(term(*reverse_batch(student, batch), 0).sum)
    assert after == pytest.approx(float(before.sum), rel=1e-4)


def test_a_bigram_of_another_vocabulary_is_refused(student, infos, lfmmi, tmp_path):
    save_bigram(make_bigram_table([[1]], 5), "", tmp_path / "bigram.pt")
    options = dataclasses.replace(lfmmi, bigram=str(tmp_path / "bigram.pt"))
    with pytest.raises(ValueError, match="has 5 tokens, the student 9"):
        build(LfmmiTerm(options), student, infos)


def test_missing_options_are_refused():
    for options in (LfmmiConfig(), LfmmiConfig(teacher="first")):
        with pytest.raises(ValueError, match="terms.lfmmi.(teacher|bigram) is empty"):
            LfmmiTerm(options)
