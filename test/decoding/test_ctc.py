"""Searches over the CTC head against all paths, and against one utterance at a time."""

import itertools
import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from icefall_kd.decoding import DecodeOptions, Hypothesis, decode, make_search
from icefall_kd.decoding.search import move_unk_to_blank

VOCAB, UNK = 9, 2
METHODS = ["ctc_greedy_search", "ctc_prefix_beam_search"]


class LogSoftmaxHead(nn.Module):
    """A head that takes the frames for logits, so that a test can write them."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, encoder_out):
        return (self.scale * encoder_out).log_softmax(dim=-1)


MODEL = SimpleNamespace(ctc_output=LogSoftmaxHead())


def add(a: float, b: float) -> float:
    """Return the log of the sum of two probabilities."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def collapse(path):
    """Return tokens and first frames of a path: no repetitions, then no blanks."""
    kept = [
        (token, t)
        for t, token in enumerate(path)
        if token != 0 and (t == 0 or token != path[t - 1])
    ]
    return tuple(token for token, _ in kept), tuple(t for _, t in kept)


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
        found[tokens] = add(total, score), best, best_times
    return found


def slow_prefix_beam(log_probs, beam):
    """Algorithm 1 of Hannun et al. with dicts: prefix -> (ends in blank, in token)."""
    prefixes = {(): (0.0, -math.inf)}
    for frame in log_probs.tolist():
        moved = defaultdict(lambda: [-math.inf, -math.inf])
        for prefix, (blank, token) in prefixes.items():
            both = add(blank, token)
            for k, log_prob in enumerate(frame):
                if k == 0:
                    moved[prefix][0] = add(moved[prefix][0], both + log_prob)
                    continue
                longer = prefix + (k,)
                if prefix and prefix[-1] == k:
                    moved[prefix][1] = add(moved[prefix][1], token + log_prob)
                    moved[longer][1] = add(moved[longer][1], blank + log_prob)
                else:
                    moved[longer][1] = add(moved[longer][1], both + log_prob)
        ranked = sorted(moved.items(), key=lambda item: -add(*item[1]))
        prefixes = dict(ranked[:beam])
    best = max(prefixes, key=lambda prefix: add(*prefixes[prefix]))
    return best, add(*prefixes[best])


def same(a: Hypothesis, b: Hypothesis) -> bool:
    return (a.tokens, a.timestamps) == (b.tokens, b.timestamps) and math.isclose(
        a.score, b.score, abs_tol=1e-3
    )


@torch.no_grad()
@pytest.mark.parametrize("vocab_size, frames", [(2, 9), (3, 6), (4, 5)])
def test_large_prefix_beam_sums_all_paths(vocab_size, frames):
    for seed in range(6):
        torch.manual_seed(seed)
        x = 2 * torch.randn(2, frames, vocab_size)
        lens = torch.tensor([frames, frames - 2])
        options = DecodeOptions("ctc_prefix_beam_search", beam=200)
        for row, hyp in enumerate(decode(MODEL, x, lens, options)):
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
        x[..., :3] += spread  # the blank and two tokens, often in a row
        lens = torch.tensor([13, 0, 21, 8, 21])
        for row, hyp in enumerate(decode(MODEL, x, lens, options)):
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
    for row, hyp in enumerate(decode(MODEL, x, lens, options)):
        log_probs = x[row, : lens[row]].log_softmax(-1)
        tokens, times = collapse(log_probs.argmax(-1).tolist())
        assert (tuple(hyp.tokens), tuple(hyp.timestamps)) == (tokens, times)
        assert hyp.score == pytest.approx(log_probs.amax(-1).sum().item(), abs=1e-3)


@torch.no_grad()
def test_beam_of_one_is_greedy_search_if_all_frames_are_certain():
    torch.manual_seed(1)
    x, lens = 12 * torch.randn(6, 40, VOCAB), torch.tensor([40, 40, 35, 30, 9, 2])
    certain = x.softmax(-1).amax(-1) > 0.9
    x = torch.where(certain[..., None], x, 30.0 * torch.eye(VOCAB)[0])
    greedy = decode(MODEL, x, lens, DecodeOptions("ctc_greedy_search"))
    beam = decode(MODEL, x, lens, DecodeOptions("ctc_prefix_beam_search", beam=1))
    assert sum(len(hyp.tokens) for hyp in greedy) > 50
    for path, prefix in zip(greedy, beam):
        assert (path.tokens, path.timestamps) == (prefix.tokens, prefix.timestamps)
        assert path.score <= prefix.score + 1e-4  # one path, and all that join it


@torch.no_grad()
def test_prefix_beam_sums_paths_that_greedy_search_ignores():
    """Two paths say 1, one says nothing: blank is the best of every single frame."""
    x = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    lens = torch.tensor([2])
    assert decode(MODEL, x, lens, DecodeOptions("ctc_greedy_search"))[0].tokens == []
    hyp = decode(MODEL, x, lens, DecodeOptions("ctc_prefix_beam_search", beam=2))[0]
    assert hyp.tokens == [1]
    assert hyp.score == pytest.approx(math.log(0.64))


@pytest.mark.parametrize("method", METHODS)
def test_padding_and_batch_order_change_nothing(method):
    torch.manual_seed(7)
    options = DecodeOptions(method, unk_id=UNK)
    x, lens = 2 * torch.randn(4, 19, VOCAB), torch.tensor([5, 19, 12, 1])
    hyps = decode(MODEL, x, lens, options)
    longer = torch.cat([x, torch.zeros(4, 6, VOCAB)], dim=1)
    for row in range(4):
        longer[row, lens[row] :] = 9.0 * torch.eye(VOCAB)[3]
    order = [2, 0, 3, 1]
    for hyp, row in zip(decode(MODEL, longer[order], lens[order], options), order):
        assert same(hyp, hyps[row])


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_search_over_chunks_equals_search_over_utterances(method):
    torch.manual_seed(3)
    options = DecodeOptions(method)
    x, lens = 2 * torch.randn(3, 20, VOCAB), torch.tensor([20, 12, 4])
    x[:, 3:5] = 9.0 * torch.eye(VOCAB)[5]  # one token on both sides of a border
    x[0, 7], x[0, 8] = x[0, 3], 9.0 * torch.eye(VOCAB)[0]
    x[0, 9] = x[0, 3]  # and one behind a blank that begins a chunk: two tokens
    search = make_search(MODEL, 3, options)
    for begin in range(0, 20, 4):
        active = int((lens > begin).sum())
        chunk = x[:active, begin : begin + 4]
        search.advance(chunk, torch.full((active,), 4))
    whole = decode(MODEL, x, lens, options)
    for hyp, expected in zip(search.hypotheses(), whole):
        assert same(hyp, expected)
    events = dict(zip(whole[0].timestamps, whole[0].tokens))
    assert events[3] == events[7] == events[9] == 5 and 4 not in events


@pytest.mark.parametrize("method", METHODS)
def test_unk_is_a_blank_only_if_given(method):
    torch.manual_seed(5)
    x, lens = torch.randn(6, 30, VOCAB), torch.full((6,), 30)
    x[..., UNK] += 2
    silent = decode(MODEL, x, lens, DecodeOptions(method, unk_id=UNK))
    spoken = decode(MODEL, x, lens, DecodeOptions(method))
    assert not any(UNK in hyp.tokens for hyp in silent)
    assert any(UNK in hyp.tokens for hyp in spoken)


def test_log_probs_without_unk_are_normalised():
    log_probs = torch.randn(2, 5, VOCAB).log_softmax(-1)
    out = move_unk_to_blank(log_probs, UNK)
    assert torch.allclose(out.exp().sum(-1), torch.ones(2, 5))
    assert (out[..., UNK] == -torch.inf).all()
    assert torch.equal(out[..., 3:], log_probs[..., 3:])
    assert move_unk_to_blank(log_probs, None) is log_probs


@pytest.mark.parametrize("method", METHODS)
def test_blank_penalty_gives_more_tokens(method):
    torch.manual_seed(1)
    x, lens = torch.randn(4, 40, VOCAB), torch.full((4,), 40)
    x[..., 0] += 3
    few, many = (
        sum(
            len(h.tokens)
            for h in decode(MODEL, x, lens, DecodeOptions(method, blank_penalty=p))
        )
        for p in (0.0, 4.0)
    )
    assert many > 1.5 * few > 0


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_penalised_scores_are_log_probabilities(method):
    """The penalty is taken from the logit: the scores stay log-probabilities."""
    x, lens = torch.zeros(1, 1, 2), torch.tensor([1])
    options = DecodeOptions(method, blank_penalty=math.log(3.0))
    hyp = decode(MODEL, x, lens, options)[0]
    assert (hyp.tokens, hyp.score) == ([1], pytest.approx(math.log(0.75)))


@pytest.mark.parametrize("method", METHODS)
def test_model_without_the_head_is_refused(method):
    bare = SimpleNamespace(ctc_output=None)
    with pytest.raises(ValueError, match="no ctc head.*terms.ctc.weight"):
        decode(bare, torch.randn(1, 3, 4), torch.tensor([3]), DecodeOptions(method))
