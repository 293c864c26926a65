"""CTC searches, compared with all paths and with slow references."""

import itertools
import math
from collections import defaultdict

import pytest
import torch
from students import CTC_MODEL, collapse

from icefall_kd.decoding import DecodeOptions, decode, make_search

VOCAB = 9
METHODS = ["ctc_greedy_search", "ctc_prefix_beam_search"]


def log_add(a: float, b: float) -> float:
    """Return the log of the sum of two probabilities."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def all_paths(log_probs):
    """Return prefix -> (sum over its paths, its best path's score and frames)."""
    rows = log_probs.tolist()
    found = defaultdict(lambda: (-math.inf, -math.inf, ()))
    for path in itertools.product(range(len(rows[0])), repeat=len(rows)):
        score = sum(row[token] for row, token in zip(rows, path))
        tokens, times = collapse(path)
        total, best, best_times = found[tokens]
        if score > best:
            best, best_times = score, times
        found[tokens] = log_add(total, score), best, best_times
    return found


def slow_prefix_beam(log_probs, beam):
    """Return the best prefix and its score; algorithm 1 of Hannun et al. with dicts."""
    prefixes = {(): (0.0, -math.inf)}
    for frame in log_probs.tolist():
        moved = defaultdict(lambda: [-math.inf, -math.inf])
        for prefix, (blank, token) in prefixes.items():
            both = log_add(blank, token)
            for k, log_prob in enumerate(frame):
                if k == 0:
                    moved[prefix][0] = log_add(moved[prefix][0], both + log_prob)
                    continue
                longer = prefix + (k,)
                if prefix and prefix[-1] == k:
                    moved[prefix][1] = log_add(moved[prefix][1], token + log_prob)
                    moved[longer][1] = log_add(moved[longer][1], blank + log_prob)
                else:
                    moved[longer][1] = log_add(moved[longer][1], both + log_prob)
        ranked = sorted(moved.items(), key=lambda item: -log_add(*item[1]))
        prefixes = dict(ranked[:beam])
    best = max(prefixes, key=lambda prefix: log_add(*prefixes[prefix]))
    return best, log_add(*prefixes[best])


@torch.no_grad()
@pytest.mark.parametrize("vocab_size, frames", [(2, 9), (3, 6), (4, 5)])
def test_large_prefix_beam_sums_all_paths(vocab_size, frames):
    for seed in range(6):
        torch.manual_seed(seed)
        x = 2 * torch.randn(2, frames, vocab_size)
        lens = torch.tensor([frames, frames - 2])
        options = DecodeOptions("ctc_prefix_beam_search", beam=200)
        for row, hyp in enumerate(decode(CTC_MODEL, x, lens, options)):
            prefixes = all_paths(x[row, : lens[row]].log_softmax(-1))
            best = max(prefixes, key=lambda k: prefixes[k][0])
            total, _, times = prefixes[best]
            assert (tuple(hyp.tokens), tuple(hyp.timestamps)) == (best, times)
            assert hyp.score == pytest.approx(total, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("beam", [1, 2, 4, 8])
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_prefix_beam_equals_slow_reference(beam, spread):
    options = DecodeOptions("ctc_prefix_beam_search", beam=beam)
    emitted = repeated = 0
    for seed in range(4):
        torch.manual_seed(seed)
        x = spread * torch.randn(5, 21, VOCAB)
        x[..., :3] += spread  # the blank and two tokens are often repeated
        lens = torch.tensor([13, 0, 21, 8, 21])
        for row, hyp in enumerate(decode(CTC_MODEL, x, lens, options)):
            log_probs = x[row, : lens[row]].log_softmax(-1)
            tokens, score = slow_prefix_beam(log_probs, beam)
            assert tuple(hyp.tokens) == tokens
            assert hyp.score == pytest.approx(score, abs=1e-3)
            assert hyp.timestamps == sorted(set(hyp.timestamps))
            emitted += len(tokens)
            repeated += sum(a == b for a, b in zip(tokens, tokens[1:]))
    assert emitted > 60 and repeated > 0


@torch.no_grad()
def test_greedy_search_collapses_the_best_path():
    torch.manual_seed(0)
    x, lens = 3 * torch.randn(4, 50, VOCAB), torch.tensor([50, 0, 31, 1])
    x[..., :3] += 3.0
    options = DecodeOptions("ctc_greedy_search")
    for row, hyp in enumerate(decode(CTC_MODEL, x, lens, options)):
        log_probs = x[row, : lens[row]].log_softmax(-1)
        tokens, times = collapse(log_probs.argmax(-1).tolist())
        assert (tuple(hyp.tokens), tuple(hyp.timestamps)) == (tokens, times)
        assert hyp.score == pytest.approx(log_probs.amax(-1).sum().item(), abs=1e-3)


@torch.no_grad()
def test_beam_of_one_is_greedy_search_if_all_frames_are_certain():
    torch.manual_seed(1)
    x, lens = 12 * torch.randn(6, 40, VOCAB), torch.tensor([40, 40, 35, 30, 9, 2])
    is_certain = x.softmax(-1).amax(-1) > 0.9
    x = torch.where(is_certain[..., None], x, 30.0 * torch.eye(VOCAB)[0])
    greedy = decode(CTC_MODEL, x, lens, DecodeOptions("ctc_greedy_search"))
    beam = decode(CTC_MODEL, x, lens, DecodeOptions("ctc_prefix_beam_search", beam=1))
    assert sum(len(hyp.tokens) for hyp in greedy) > 50
    for path, prefix in zip(greedy, beam):
        assert (path.tokens, path.timestamps) == (prefix.tokens, prefix.timestamps)
        assert path.score <= prefix.score + 1e-4  # sum of all paths


@torch.no_grad()
def test_prefix_beam_sums_paths_that_greedy_search_ignores():
    """Three of four paths emit a token, but each frame has the blank as its best."""
    x = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    lens = torch.tensor([2])
    greedy = decode(CTC_MODEL, x, lens, DecodeOptions("ctc_greedy_search"))[0]
    assert greedy.tokens == []
    options = DecodeOptions("ctc_prefix_beam_search", beam=2)
    hyp = decode(CTC_MODEL, x, lens, options)[0]
    assert hyp.tokens == [1]
    assert hyp.score == pytest.approx(math.log(0.64))


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_token_across_chunks_is_one_token(method):
    torch.manual_seed(3)
    options, lens = DecodeOptions(method), torch.tensor([20])
    x = 2 * torch.randn(1, 20, VOCAB)
    token, blank = 9.0 * torch.eye(VOCAB)[5], 9.0 * torch.eye(VOCAB)[0]
    x[0, 3:5] = token  # the last frame of a chunk and the first of the next
    x[0, 7:10] = torch.stack([token, blank, token])  # a chunk starts with the blank
    search = make_search(CTC_MODEL, 1, options)
    for begin in range(0, 20, 4):
        search.advance(x[:, begin : begin + 4], torch.tensor([4]))
    (hyp,) = search.hypotheses()
    (expected,) = decode(CTC_MODEL, x, lens, options)
    assert (hyp.tokens, hyp.timestamps) == (expected.tokens, expected.timestamps)
    emitted = dict(zip(hyp.timestamps, hyp.tokens))
    assert emitted[3] == emitted[7] == emitted[9] == 5 and 4 not in emitted


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_penalised_scores_are_log_probabilities(method):
    x, lens = torch.zeros(1, 1, 2), torch.tensor([1])
    options = DecodeOptions(method, blank_penalty=math.log(3.0))
    hyp = decode(CTC_MODEL, x, lens, options)[0]
    assert (hyp.tokens, hyp.score) == ([1], pytest.approx(math.log(0.75)))
