"""Batched searches against one-utterance references written the slow way."""

import math

import pytest
import torch
from small_joiner import DIM, UNK, VOCAB, random_model

from icefall_kd.decoding import DecodeOptions, Hypothesis, decode, make_search


def frame_log_probs(model, frame, tokens, options):
    """Log-probabilities (V,) of one frame after ``tokens``, one call a time."""
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
    """Viterbi over the contexts: the best way to each of them is kept."""
    size = model.decoder.context_size
    best = {(-1,) * (size - 1) + (0,): Hypothesis()}
    for t, frame in enumerate(frames):
        reached = {}
        for context, hyp in best.items():
            log_probs = frame_log_probs(model, frame, hyp.tokens, options)
            silent = [log_probs[i] for i in (0, options.unk_id) if i is not None]
            log_probs[0] = math.log(sum(map(math.exp, silent)))
            for token, log_prob in enumerate(log_probs):
                if token == options.unk_id:
                    continue
                spoken = [token] if token else []
                extended = Hypothesis(
                    hyp.tokens + spoken,
                    hyp.timestamps + [t] * len(spoken),
                    hyp.score + log_prob,
                )
                end = (*context, *spoken)[-size:]
                if end not in reached or reached[end].score < extended.score:
                    reached[end] = extended
        # The winner is never this far behind; the search itself keeps 20 nats.
        limit = max(h.score for h in reached.values()) - 4.0
        best = {c: h for c, h in reached.items() if h.score > limit}
    return max(best.values(), key=lambda h: h.score)


SLOW = {
    "greedy_search": slow_greedy,
    "modified_beam_search": slow_beam,
    "fast_beam_search": slow_best_path,
}
METHODS = sorted(SLOW)
BEAMS = {"fast_beam_search": 150}  # contexts, as many as matter to its reference


def options_of(method, **others):
    return DecodeOptions(method, beam=BEAMS.get(method, 4), **others)


def same(a: Hypothesis, b: Hypothesis) -> bool:
    return (a.tokens, a.timestamps) == (b.tokens, b.timestamps) and math.isclose(
        a.score, b.score, abs_tol=1e-3
    )


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("context_size", [1, 2, 3])
@pytest.mark.parametrize("blank_penalty", [0.0, 1.5])
def test_batched_search_equals_slow_reference(method, context_size, blank_penalty):
    options = options_of(method, blank_penalty=blank_penalty, unk_id=UNK)
    emitted = 0
    for seed in range(3):
        model = random_model(seed, context_size)
        lens = torch.tensor([13, 0, 21, 8, 21])
        x = torch.randn(5, 21, DIM)
        for row, hyp in enumerate(decode(model, x, lens, options)):
            expected = SLOW[method](model, x[row, : lens[row]], options)
            assert same(hyp, expected), (seed, row, hyp, expected)
            emitted += len(hyp.tokens)
    assert emitted > 50  # the models do speak


@pytest.mark.parametrize("method", METHODS)
def test_padding_and_batch_order_change_nothing(method):
    model = random_model(7)
    options = options_of(method, unk_id=UNK)
    x, lens = torch.randn(4, 19, DIM), torch.tensor([5, 19, 12, 1])
    hyps = decode(model, x, lens, options)
    longer = torch.cat([x, torch.full((4, 6, DIM), 9.0)], dim=1)
    for row in range(4):
        longer[row, lens[row] :] = 9.0
    order = [2, 0, 3, 1]
    for hyp, row in zip(decode(model, longer[order], lens[order], options), order):
        assert same(hyp, hyps[row])


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_search_over_chunks_equals_search_over_utterances(method):
    model = random_model(3)
    options = options_of(method, unk_id=UNK)
    x, lens = torch.randn(3, 20, DIM), torch.tensor([20, 12, 4])
    search = make_search(model, 3, options)
    for begin in range(0, 20, 4):
        active = int((lens > begin).sum())
        chunk = x[:active, begin : begin + 4]
        search.advance(chunk, torch.full((active,), 4))
        assert len(search.hypotheses()) == 3  # may be asked for at any time
    for hyp, expected in zip(search.hypotheses(), decode(model, x, lens, options)):
        assert same(hyp, expected)


@pytest.mark.parametrize("method", METHODS)
def test_unk_is_a_blank_only_if_given(method):
    x, lens = torch.randn(6, 30, DIM), torch.full((6,), 30)
    model = random_model(5)
    with torch.no_grad():
        model.joiner.output_linear.bias[UNK] += 5
    silent = decode(model, x, lens, DecodeOptions(method, unk_id=UNK))
    spoken = decode(model, x, lens, DecodeOptions(method))
    assert not any(UNK in hyp.tokens for hyp in silent)
    assert any(UNK in hyp.tokens for hyp in spoken)


def test_beam_of_one_is_greedy_search():
    model = random_model(9)
    x, lens = torch.randn(3, 25, DIM), torch.tensor([25, 25, 10])
    greedy = decode(model, x, lens, DecodeOptions("greedy_search"))
    beam = decode(model, x, lens, DecodeOptions("modified_beam_search", beam=1))
    assert all(same(a, b) for a, b in zip(greedy, beam))


def test_blank_penalty_gives_more_tokens():
    model = random_model(1)
    x, lens = torch.randn(4, 40, DIM), torch.full((4,), 40)
    with torch.no_grad():
        model.joiner.output_linear.bias[0] += 4
    few, many = (
        sum(
            len(h.tokens)
            for h in decode(model, x, lens, DecodeOptions(blank_penalty=p))
        )
        for p in (0.0, 6.0)
    )
    assert many > few


def test_unknown_method_is_refused():
    model = random_model(0)
    with pytest.raises(ValueError, match="greedy_search.*modified_beam_search"):
        decode(
            model, torch.randn(1, 3, DIM), torch.tensor([3]), DecodeOptions("viterbi")
        )


@pytest.mark.parametrize("options", [{"beam": 0}, {"blank_penalty": -1.0}])
def test_invalid_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DecodeOptions(**options)


def test_invalid_lengths_are_refused():
    search = make_search(random_model(0), 2, DecodeOptions())
    with pytest.raises(ValueError, match="do not fit"):
        search.advance(torch.randn(2, 3, DIM), torch.tensor([4, 3]))
    with pytest.raises(ValueError, match="descending order"):
        search.advance(torch.randn(2, 3, DIM), torch.tensor([1, 3]))
