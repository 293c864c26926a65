"""Bigrams, and label sequences summed one by one."""

import itertools
import math
import sys

import pytest
import torch

from icefall_kd.bin import make_bigram
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.fields.reader import read_texts
from icefall_kd.transducer.bigram import (
    END,
    estimate_bigram,
    fuse_bigram,
    load_bigram,
    make_bigram_table,
    save_bigram,
)
from icefall_kd.transducer.denominator import sum_label_sequences

TEXTS = [[1, 2], [2, 2, 1], [1]]
VOCAB = 4  # token 3 is never seen


def bigram_score(tokens):
    """Return the log-probability of a text."""
    seen, unigram, backoff = estimate_bigram(TEXTS, VOCAB)
    total, padded = 0.0, [0, *tokens, -1]
    for a, b in zip(padded, padded[1:]):
        total += seen.get((a, b), backoff.get(a, 0.0) + unigram[b])
    return total


def collapse(path):
    """Merge repeated symbols and drop blanks."""
    kept = [p for p, _ in itertools.groupby(path)]
    return [p for p in kept if p != 0]


def slow_total(log_probs):
    """Return the log-sum over all sequences of one symbol for each frame."""
    scores = []
    for path in itertools.product(range(VOCAB), repeat=len(log_probs)):
        acoustic = sum(float(log_probs[t, p]) for t, p in enumerate(path))
        scores.append(acoustic + bigram_score(collapse(path)))
    return float(torch.tensor(scores, dtype=torch.float64).logsumexp(0))


def test_bigram_is_normalised_after_every_token():
    seen, unigram, backoff = estimate_bigram(TEXTS, VOCAB)
    assert sum(math.exp(p) for p in unigram.values()) == pytest.approx(1.0)
    for a in range(VOCAB):
        after = [
            math.exp(seen.get((a, b), backoff.get(a, 0.0) + unigram[b]))
            for b in [*range(1, VOCAB), -1]
        ]
        assert sum(after) == pytest.approx(1.0)
    assert seen[(0, 1)] > seen[(0, 2)]  # two of three texts begin with 1
    with pytest.raises(ValueError, match="no text"):
        estimate_bigram([], VOCAB)


def test_total_score_is_the_sum_over_all_label_sequences():
    torch.manual_seed(0)
    log_probs = torch.randn(4, 5, VOCAB).log_softmax(-1)
    lens = torch.tensor([3, 5, 4, 1])
    for n, frames in enumerate(lens.tolist()):
        log_probs[n, frames:] = float("nan")
    found, _ = sum_label_sequences(log_probs, lens, make_bigram_table(TEXTS, VOCAB))
    for n, frames in enumerate(lens.tolist()):
        expected = slow_total(log_probs[n, :frames])
        assert float(found[n]) == pytest.approx(expected, abs=1e-5)


def test_gradient_of_the_total_score_is_the_occupancy():
    torch.manual_seed(1)
    bigram = make_bigram_table(TEXTS, VOCAB)
    log_probs = torch.randn(2, 5, VOCAB, dtype=torch.float64).log_softmax(-1)
    log_probs.requires_grad_()
    totals, gamma = sum_label_sequences(log_probs, torch.tensor([4, 5]), bigram)
    (2 * totals[0] + 3 * totals[1]).backward()
    torch.testing.assert_close(
        log_probs.grad, gamma * torch.tensor([2.0, 3.0])[:, None, None]
    )
    sums = torch.tensor([[1.0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).double()
    torch.testing.assert_close(gamma.sum(-1), sums)
    step = 1e-4
    for t, v in itertools.product(range(4), range(VOCAB)):
        up, down = log_probs.detach()[0, :4].clone(), log_probs.detach()[0, :4].clone()
        up[t, v] += step
        down[t, v] -= step
        slope = (slow_total(up) - slow_total(down)) / (2 * step)
        assert float(gamma[0, t, v]) == pytest.approx(slope, abs=1e-6)


def test_occupancies_of_long_and_certain_audio_are_finite():
    torch.manual_seed(0)
    log_probs = (200 * torch.randn(2, 400, 50)).log_softmax(-1)
    bigram = make_bigram_table([torch.randint(1, 50, (90,)).tolist()], 50)
    totals, gamma = sum_label_sequences(log_probs, torch.tensor([400, 250]), bigram)
    assert torch.isfinite(totals).all()
    torch.testing.assert_close(gamma[0].sum(-1), torch.ones(400))


def test_bigram_table_contains_the_estimate():
    seen, unigram, backoff = estimate_bigram(TEXTS, VOCAB)
    table = make_bigram_table(TEXTS, VOCAB)
    for a in range(VOCAB):
        for b in range(1, VOCAB):
            expected = seen.get((a, b), backoff.get(a, 0.0) + unigram[b])
            assert float(table[a, b]) == pytest.approx(expected, abs=1e-6)
        end = math.exp(seen.get((a, END), backoff.get(a, 0.0) + unigram[END]))
        assert float(table[a, 1:].exp().sum()) == pytest.approx(1.0 - end, abs=1e-6)
    assert (table[:, 0] == 0).all()


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_bigram_fusion_equals_a_slow_reference(scale):
    torch.manual_seed(0)
    table = make_bigram_table(TEXTS, VOCAB)
    log_probs = torch.randn(2, 5, VOCAB).log_softmax(-1)
    before = torch.randint(VOCAB, (2, 5))
    found = fuse_bigram(log_probs, before, table, scale)
    for n in range(2):
        for t in range(5):
            p = log_probs[n, t].exp().tolist()
            a = int(before[n, t])
            q = [p[k] * math.exp(float(table[a, k])) ** scale for k in range(1, VOCAB)]
            expected = [p[0], *((1 - p[0]) * x / sum(q) for x in q)]
            assert found[n, t].exp().tolist() == pytest.approx(expected, abs=1e-6)


def test_bigram_fusion_keeps_the_blank_and_scale_zero_changes_nothing():
    table = make_bigram_table(TEXTS, VOCAB)
    log_probs = (10 * torch.randn(50, VOCAB)).log_softmax(-1)
    before = torch.randint(VOCAB, (50,))
    torch.testing.assert_close(fuse_bigram(log_probs, before, table, 0.0), log_probs)
    found = fuse_bigram(log_probs, before, table, 0.8)
    assert torch.equal(found[:, 0], log_probs[:, 0])
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(50))


def test_make_bigram_estimates_the_bigram_of_a_shar_folder(
    asterisk, tmp_path, monkeypatch
):
    path, bpe = tmp_path / "bigram.pt", asterisk / "data/lang_bpe_150/bpe.model"
    train = str(asterisk / "data/shar/train")
    command = ["make_bigram", "--shar-dir", train, "--bpe-model", str(bpe)]
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(path)])
    make_bigram.main()
    tokenizer = Tokenizer(bpe)
    table = load_bigram(path, tokenizer.sha256)
    texts = read_texts([train])
    assert len(texts) > 100
    torch.testing.assert_close(
        table, make_bigram_table(map(tokenizer.encode, texts), tokenizer.vocab_size)
    )
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        make_bigram.main()


def test_a_bigram_of_another_bpe_model_is_refused(tmp_path):
    save_bigram(make_bigram_table(TEXTS, VOCAB), "a" * 64, tmp_path / "bigram.pt")
    for sha256 in ("a" * 64, None):
        assert load_bigram(tmp_path / "bigram.pt", sha256).shape == (VOCAB, VOCAB)
    with pytest.raises(ValueError, match="of the BPE model aaaaaaaaaaaa, not of bbbb"):
        load_bigram(tmp_path / "bigram.pt", "b" * 64)
    with pytest.raises(FileNotFoundError, match="make_bigram"):
        load_bigram(tmp_path / "none.pt", "a" * 64)
    torch.save({"x": 1}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="x.pt: not a bigram of tokens"):
        load_bigram(tmp_path / "x.pt", "a" * 64)
