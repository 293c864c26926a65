"""One-best paths compared with all paths, and scores node by node."""

import itertools

import pytest
import torch
from torch import nn

from icefall_kd.transducer.model import AsrModel, Decoder, Joiner
from icefall_kd.transducer.path import best_path, count_emitted, score_path

VOCAB = 7


def list_paths(num_frames, tokens):
    """Yield every choice of the frames that emit the tokens."""
    for frames in itertools.combinations(range(num_frames), len(tokens)):
        emitted = [0] * num_frames
        for frame, token in zip(frames, tokens):
            emitted[frame] = token
        yield emitted


def score(log_probs, emitted):
    total, u = 0.0, 0
    for t, token in enumerate(emitted):
        total += float(log_probs[t, u, token])
        u += token != 0
    return total


@pytest.mark.parametrize("num_frames, num_tokens", [(1, 0), (1, 1), (5, 2), (6, 6)])
@pytest.mark.parametrize("seed", range(5))
def test_best_path_equals_the_best_of_all_paths(num_frames, num_tokens, seed):
    torch.manual_seed(seed)
    tokens = torch.randint(1, VOCAB, (num_tokens,)).tolist()
    log_probs = (2 * torch.randn(num_frames, num_tokens + 1, VOCAB)).log_softmax(-1)
    found = best_path(log_probs, tokens).tolist()
    expected = max(score(log_probs, p) for p in list_paths(num_frames, tokens))
    assert [t for t in found if t] == tokens
    assert score(log_probs, found) == pytest.approx(expected, rel=1e-5)


def test_more_tokens_than_frames_are_refused():
    with pytest.raises(ValueError, match="3 tokens in 2 frames"):
        best_path(torch.zeros(2, 4, VOCAB), [1, 2, 3])


def test_count_emitted_counts_the_tokens_before_a_frame():
    emitted = torch.tensor([[0, 3, 0, 4, 5, 0], [2, 0, 0, 0, 0, 1]])
    assert count_emitted(emitted).tolist() == [[0, 0, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1]]


def test_score_path_gives_the_logits_of_each_node():

    torch.manual_seed(0)
    model = AsrModel(
        nn.Identity(),
        nn.Identity(),
        Decoder(VOCAB, 8),
        Joiner(5, 8, 6, VOCAB),
        5,
        8,
        VOCAB,
    ).eval()
    encoder_out = torch.randn(2, 6, 5)
    emitted = torch.tensor([[0, 3, 0, 4, 5, 0], [2, 0, 0, 1, 0, 0]])
    logits, _ = score_path(model, encoder_out, emitted)
    for n in range(2):
        history = [0, 0]
        for t, token in enumerate(emitted[n].tolist()):
            context = torch.tensor([history[-2:]])
            if len(history) == 2:
                context[0, 0] = -1  # no token before the first
            dec = model.decoder(context, need_pad=False)[:, 0]
            expected = model.joiner(encoder_out[n, t : t + 1], dec)[0]
            torch.testing.assert_close(logits[n, t], expected, atol=1e-5, rtol=1e-4)
            if token:
                history.append(token)
