"""Tests of every search, and transducer searches compared with slow references."""

import math
from types import SimpleNamespace

import pytest
import torch
from pinned import needs_k2
from students import CTC_MODEL, random_joiner, search_options

from icefall_kd.decoding import (
    DECODERS,
    DecodeOptions,
    Hypothesis,
    decode,
    get_search_class,
    make_search,
)
from icefall_kd.decoding.search import move_unk_to_blank

VOCAB, DIM, UNK = 11, 16, 2


def make_case(method, seed, *shape):
    """Return a model with the head of ``method``, and random encoder output."""
    if get_search_class(method).head == "ctc":
        torch.manual_seed(seed)
        return CTC_MODEL, 2 * torch.randn(*shape, VOCAB)
    return random_joiner(seed, VOCAB, DIM), torch.randn(*shape, DIM)


def frame_log_probs(model, frame, tokens, options):
    """Return the log-probabilities (V,) of one frame after ``tokens``."""
    size = model.decoder.context_size
    context = ([-1] * (size - 1) + [0] + list(tokens))[-size:]
    predicted = model.decoder(torch.tensor([context]), need_pad=False)
    logits = model.joiner(frame.view(1, 1, -1), predicted).flatten()
    logits[0] -= options.blank_penalty
    return logits.log_softmax(dim=0).tolist()


def slow_greedy(model, frames, options) -> Hypothesis:
    hyp = Hypothesis()
    for t, frame in enumerate(frames):
        log_probs = frame_log_probs(model, frame, hyp.tokens, options)
        best = max(range(VOCAB), key=log_probs.__getitem__)
        hyp.score += log_probs[best]
        if best not in (0, options.unk_id):
            hyp.tokens.append(best)
            hyp.timestamps.append(t)
    return hyp


def slow_beam(model, frames, options) -> Hypothesis:
    beam = {(): (0.0, ())}
    for t, frame in enumerate(frames):
        extensions = []
        for tokens, (score, times) in beam.items():
            log_probs = frame_log_probs(model, frame, tokens, options)
            for token, log_prob in enumerate(log_probs):
                extensions.append((score + log_prob, tokens, times, token))
        extensions.sort(key=lambda e: -e[0])
        beam = {}
        for score, tokens, times, token in extensions[: options.beam]:
            if token not in (0, options.unk_id):
                tokens, times = tokens + (token,), times + (t,)
            if tokens in beam:
                old, times = beam[tokens]
                high, low = max(old, score), min(old, score)
                score = high + math.log1p(math.exp(low - high))
            beam[tokens] = (score, times)
    size = model.decoder.context_size
    tokens = max(beam, key=lambda k: beam[k][0] / (len(k) + size))
    return Hypothesis(list(tokens), list(beam[tokens][1]), beam[tokens][0])


def slow_best_path(model, frames, options) -> Hypothesis:
    """Return the best path, by a Viterbi search over predictor contexts."""
    size = model.decoder.context_size
    best = {(-1,) * (size - 1) + (0,): Hypothesis()}
    for t, frame in enumerate(frames):
        reached = {}
        for context, hyp in best.items():
            log_probs = frame_log_probs(model, frame, hyp.tokens, options)
            blanks = [log_probs[i] for i in (0, options.unk_id) if i is not None]
            log_probs[0] = math.log(sum(map(math.exp, blanks)))
            for token, log_prob in enumerate(log_probs):
                if token == options.unk_id:
                    continue
                emitted = [token] if token else []
                extended = Hypothesis(
                    hyp.tokens + emitted,
                    hyp.timestamps + [t] * len(emitted),
                    hyp.score + log_prob,
                )
                end = (*context, *emitted)[-size:]
                if end not in reached or reached[end].score < extended.score:
                    reached[end] = extended
        # Faster: the best path is never 4 nats below the best of a frame.  The search
        # keeps 20 nats.
        limit = max(h.score for h in reached.values()) - 4.0
        best = {c: h for c, h in reached.items() if h.score > limit}
    return max(best.values(), key=lambda h: h.score)


SLOW = {
    "greedy_search": slow_greedy,
    "modified_beam_search": slow_beam,
    "fast_beam_search": slow_best_path,
}


def mark_k2(methods):
    """Return the methods; the tests of one that needs k2 are skipped without it."""
    return [
        pytest.param(method, marks=needs_k2) if method == "fast_beam_search" else method
        for method in sorted(methods)
    ]


METHODS = mark_k2(DECODERS)
BEAMS = {"fast_beam_search": 150}  # contexts; enough for an exact search


def make_options(method, **others):
    return search_options(method, VOCAB, beam=BEAMS.get(method, 4), **others)


def is_same(a: Hypothesis, b: Hypothesis) -> bool:
    return (a.tokens, a.timestamps) == (b.tokens, b.timestamps) and math.isclose(
        a.score, b.score, abs_tol=1e-3
    )


@torch.no_grad()
@pytest.mark.parametrize("method", mark_k2(SLOW))
@pytest.mark.parametrize("context_size", [1, 2, 3])
@pytest.mark.parametrize("blank_penalty", [0.0, 1.5])
def test_batched_search_equals_slow_reference(method, context_size, blank_penalty):
    options = make_options(method, blank_penalty=blank_penalty, unk_id=UNK)
    emitted = 0
    for seed in range(3):
        model = random_joiner(seed, VOCAB, DIM, context_size)
        lens = torch.tensor([13, 0, 21, 8, 21])
        x = torch.randn(5, 21, DIM)
        for row, hyp in enumerate(decode(model, x, lens, options)):
            expected = SLOW[method](model, x[row, : lens[row]], options)
            assert is_same(hyp, expected), (seed, row, hyp, expected)
            emitted += len(hyp.tokens)
    assert emitted > 50


@pytest.mark.parametrize("method", METHODS)
def test_padding_and_batch_order_change_nothing(method):
    model, x = make_case(method, 7, 4, 19)
    options, lens = make_options(method, unk_id=UNK), torch.tensor([5, 19, 12, 1])
    hyps = decode(model, x, lens, options)
    longer = torch.cat([x, torch.zeros(4, 6, x.size(2))], dim=1)
    for row in range(4):
        longer[row, lens[row] :] = 9.0 * torch.eye(x.size(2))[3]
    order = [2, 0, 3, 1]
    for hyp, row in zip(decode(model, longer[order], lens[order], options), order):
        assert is_same(hyp, hyps[row])


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_search_over_chunks_equals_search_over_utterances(method):
    model, x = make_case(method, 3, 3, 20)
    options, lens = make_options(method, unk_id=UNK), torch.tensor([20, 12, 4])
    search = make_search(model, 3, options)
    for begin in range(0, 20, 4):
        active = int((lens > begin).sum())
        chunk = x[:active, begin : begin + 4]
        search.advance(chunk, torch.full((active,), 4))
        assert len(search.hypotheses()) == 3  # partial results
    for hyp, expected in zip(search.hypotheses(), decode(model, x, lens, options)):
        assert is_same(hyp, expected)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_unk_is_a_blank_only_if_given(method):
    model, x = make_case(method, 5, 6, 30)
    if model is CTC_MODEL:
        x[..., UNK] += 4
    else:
        model.joiner.output_linear.bias[UNK] += 5
    lens = torch.full((6,), 30)
    without = decode(model, x, lens, make_options(method, unk_id=UNK))
    assert not any(UNK in hyp.tokens for hyp in without)
    given = decode(model, x, lens, make_options(method))
    assert any(UNK in hyp.tokens for hyp in given)


def test_log_probs_without_unk_are_normalised():
    log_probs = torch.randn(2, 5, VOCAB).log_softmax(-1)
    out = move_unk_to_blank(log_probs, UNK)
    assert torch.allclose(out.exp().sum(-1), torch.ones(2, 5))
    assert (out[..., UNK] == -torch.inf).all()
    assert torch.equal(out[..., 3:], log_probs[..., 3:])
    assert move_unk_to_blank(log_probs, None) is log_probs


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_blank_penalty_gives_more_tokens(method):
    model, x = make_case(method, 1, 4, 40)
    if model is CTC_MODEL:
        x[..., 0] += 6
    else:
        model.joiner.output_linear.bias[0] += 4
    few, many = (
        sum(len(hyp.tokens) for hyp in decode(model, x, torch.full((4,), 40), options))
        for options in (make_options(method, blank_penalty=p) for p in (0.0, 6.0))
    )
    assert many > 1.5 * few > 0


def test_beam_of_one_is_greedy_search():
    model = random_joiner(9, VOCAB, DIM)
    x, lens = torch.randn(3, 25, DIM), torch.tensor([25, 25, 10])
    greedy = decode(model, x, lens, DecodeOptions("greedy_search"))
    beam = decode(model, x, lens, DecodeOptions("modified_beam_search", beam=1))
    assert all(is_same(a, b) for a, b in zip(greedy, beam))


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="viterbi.*greedy_search"):
        make_search(CTC_MODEL, 1, DecodeOptions("viterbi"))


@pytest.mark.parametrize("method", METHODS)
def test_model_without_the_head_is_refused(method):
    bare = SimpleNamespace(ctc_output=None, decoder=None, joiner=None)
    with pytest.raises(ValueError, match="no (ctc|transducer) head"):
        make_search(bare, 1, DecodeOptions(method))


@pytest.mark.parametrize("options", [{"beam": 0}, {"blank_penalty": -1.0}])
def test_invalid_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DecodeOptions(**options)


def test_invalid_lengths_are_refused():
    model, x = make_case("greedy_search", 0, 2, 3)
    search = make_search(model, 2, DecodeOptions())
    with pytest.raises(ValueError, match="do not fit"):
        search.advance(x, torch.tensor([4, 3]))
    with pytest.raises(ValueError, match="descending order"):
        search.advance(x, torch.tensor([1, 3]))
