"""The bigram of tokens as a table, and its say in a teacher's distributions."""

import math
import sys

import pytest
import torch

from icefall_kd.bin import make_denominator
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.transducer.denominator import (
    END,
    estimate_bigram,
    fuse_bigram,
    load_bigram,
    make_bigram_table,
    save_bigram,
)

TEXTS = [[1, 2], [2, 2, 1], [1]]
VOCAB = 4  # token 3 is never seen


def test_the_table_holds_the_estimate():
    seen, alone, back = estimate_bigram(TEXTS, VOCAB)
    table = make_bigram_table(TEXTS, VOCAB)
    for a in range(VOCAB):
        for b in range(1, VOCAB):
            expected = seen.get((a, b), back.get(a, 0.0) + alone[b])
            assert float(table[a, b]) == pytest.approx(expected, abs=1e-6)
        end = math.exp(seen.get((a, END), back.get(a, 0.0) + alone[END]))
        assert float(table[a, 1:].exp().sum()) == pytest.approx(1.0 - end, abs=1e-6)
    assert (table[:, 0] == 0).all()


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_fusion_equals_the_slow_reference(scale):
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


def test_a_scale_of_zero_changes_nothing_and_the_blank_stays_what_it_is():
    table = make_bigram_table(TEXTS, VOCAB)
    log_probs = (10 * torch.randn(50, VOCAB)).log_softmax(-1)
    before = torch.randint(VOCAB, (50,))
    torch.testing.assert_close(fuse_bigram(log_probs, before, table, 0.0), log_probs)
    found = fuse_bigram(log_probs, before, table, 0.8)
    assert torch.equal(found[:, 0], log_probs[:, 0])
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(50))


def test_the_command_writes_what_the_texts_of_a_shar_say(
    asterisk, tmp_path, monkeypatch
):
    path, bpe = tmp_path / "bigram.pt", asterisk / "data/lang_bpe_150/bpe.model"
    train = str(asterisk / "data/shar/train")
    command = ["make_denominator", "--shar-dir", train, "--bpe-model", str(bpe)]
    monkeypatch.setattr(sys, "argv", [*command, "--bigram", str(path)])
    make_denominator.main()
    tokenizer = Tokenizer(bpe)
    table = load_bigram(path, tokenizer.sha256)
    texts = make_denominator.read_texts([train])
    assert len(texts) > 100
    torch.testing.assert_close(
        table, make_bigram_table(map(tokenizer.encode, texts), tokenizer.vocab_size)
    )
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        make_denominator.main()


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    save_bigram(make_bigram_table(TEXTS, VOCAB), "a" * 64, tmp_path / "bigram.pt")
    assert load_bigram(tmp_path / "bigram.pt", "a" * 64).shape == (VOCAB, VOCAB)
    with pytest.raises(ValueError, match="of the BPE model aaaaaaaaaaaa, not of bbbb"):
        load_bigram(tmp_path / "bigram.pt", "b" * 64)
    with pytest.raises(FileNotFoundError, match="make_denominator --bigram"):
        load_bigram(tmp_path / "none.pt", "a" * 64)
    torch.save({"x": 1}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="x.pt: not a bigram of tokens"):
        load_bigram(tmp_path / "x.pt", "a" * 64)
