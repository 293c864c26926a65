"""The denominator graph against sums over all paths, written out."""

import itertools
import math

import pytest
import torch

from icefall_kd.transducer.denominator import (
    build_denominator,
    compute_total_scores,
    estimate_bigram,
    load_denominator,
    save_denominator,
)

TEXTS = [[1, 2], [2, 2, 1], [1]]
VOCAB = 4  # token 3 is never seen


@pytest.fixture(scope="module")
def graph():
    return build_denominator(TEXTS, VOCAB)


def language_score(tokens):
    seen, alone, back = estimate_bigram(TEXTS, VOCAB)
    total, walk = 0.0, [0, *tokens, -1]
    for a, b in zip(walk, walk[1:]):
        total += seen.get((a, b), back.get(a, 0.0) + alone[b])
    return total


def collapse(path):
    kept = [p for p, _ in itertools.groupby(path)]
    return [p for p in kept if p != 0]


def slow_total(log_probs):
    """Log-sum over every way to label the frames."""
    scores = []
    for path in itertools.product(range(VOCAB), repeat=len(log_probs)):
        acoustic = sum(float(log_probs[t, p]) for t, p in enumerate(path))
        scores.append(acoustic + language_score(collapse(path)))
    return float(torch.tensor(scores, dtype=torch.float64).logsumexp(0))


def test_the_bigram_is_a_distribution_after_every_token():
    seen, alone, back = estimate_bigram(TEXTS, VOCAB)
    assert sum(math.exp(p) for p in alone.values()) == pytest.approx(1.0)
    for a in range(VOCAB):
        after = [
            math.exp(seen.get((a, b), back.get(a, 0.0) + alone[b]))
            for b in [*range(1, VOCAB), -1]
        ]
        assert sum(after) == pytest.approx(1.0)
    assert seen[(0, 1)] > seen[(0, 2)]  # two of three texts begin with 1
    with pytest.raises(ValueError, match="no text"):
        estimate_bigram([], VOCAB)


def test_the_total_is_the_sum_over_all_paths(graph):
    torch.manual_seed(0)
    log_probs = torch.randn(3, 5, VOCAB).log_softmax(-1)
    lens = torch.tensor([3, 5, 4])  # not in the order of their lengths
    found = compute_total_scores(log_probs, lens, graph, output_beam=100.0)
    for n, frames in enumerate(lens.tolist()):
        expected = slow_total(log_probs[n, :frames])
        assert float(found[n]) == pytest.approx(expected, abs=1e-4)


def test_its_gradient_is_the_occupancy(graph):
    torch.manual_seed(1)
    log_probs = torch.randn(1, 4, VOCAB).log_softmax(-1).requires_grad_()
    compute_total_scores(log_probs, torch.tensor([4]), graph, 100.0).sum().backward()
    gamma = log_probs.grad[0]
    torch.testing.assert_close(gamma.sum(-1), torch.ones(4), atol=1e-4, rtol=0)
    step = 1e-2
    for t, v in ((0, 0), (2, 3)):
        up, down = log_probs.detach()[0].clone(), log_probs.detach()[0].clone()
        up[t, v] += step
        down[t, v] -= step
        slope = (slow_total(up) - slow_total(down)) / (2 * step)
        assert float(gamma[t, v]) == pytest.approx(slope, abs=1e-3)


def test_a_graph_read_back_gives_the_same(graph, tmp_path):
    save_denominator(graph, VOCAB, tmp_path / "den.pt")
    again, size = load_denominator(tmp_path / "den.pt")
    log_probs = torch.randn(1, 4, VOCAB).log_softmax(-1)
    lens = torch.tensor([4])
    assert size == VOCAB
    assert float(compute_total_scores(log_probs, lens, again)) == pytest.approx(
        float(compute_total_scores(log_probs, lens, graph))
    )
    with pytest.raises(FileNotFoundError, match="make_denominator"):
        load_denominator(tmp_path / "none.pt")
    torch.save({"x": 1}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="x.pt: not a denominator graph"):
        load_denominator(tmp_path / "x.pt")
