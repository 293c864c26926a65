"""Transducer and CTC losses against slow sums over all paths."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from icefall_kd.transducer.loss import (
    ctc_loss,
    has_alignment,
    pruned_transducer_loss,
    select_labels,
    smoothed_logprobs,
)
from icefall_kd.transducer.model import AsrModel, Decoder, Joiner


def small_model(encoder_dim=6, decoder_dim=8, vocab_size=7):
    """Return a model without encoder: the losses start from its output."""
    torch.manual_seed(0)
    return AsrModel(
        encoder_embed=nn.Identity(),
        encoder=nn.Identity(),
        decoder=Decoder(vocab_size, decoder_dim),
        joiner=Joiner(encoder_dim, decoder_dim, 8, vocab_size),
        encoder_dim=encoder_dim,
        decoder_dim=decoder_dim,
        vocab_size=vocab_size,
    ).eval()


@pytest.fixture(params=["k2", "torch"])
def transducer_loss(request):
    """`pruned_transducer_loss` with each backend."""
    if request.param == "k2":
        pytest.importorskip("k2")
    return functools.partial(pruned_transducer_loss, backend=request.param)


def full_sum(log_probs, y):
    """Return -log P(y) by Graves' recursion over the full lattice.

    Args:
      log_probs: (T, U + 1, V) float64.
      y: U token ids.
    """
    frames, labels, _ = log_probs.shape
    alpha = np.full((frames, labels), -math.inf)
    alpha[0, 0] = 0.0
    for t, u in itertools.product(range(frames), range(labels)):
        if t > 0:
            step = alpha[t - 1, u] + log_probs[t - 1, u, 0]
            alpha[t, u] = np.logaddexp(alpha[t, u], step)
        if u > 0:
            step = alpha[t, u - 1] + log_probs[t, u - 1, y[u - 1]]
            alpha[t, u] = np.logaddexp(alpha[t, u], step)
    return -(alpha[-1, -1] + log_probs[-1, -1, 0])


def joint_log_probs(model, encoder_out, y):
    """Return the joiner's log-probabilities at all nodes, (T, U + 1, V) float64."""
    decoder_out = model.decoder(torch.tensor([[0] + y]))
    logits = model.joiner(encoder_out[:, None], decoder_out[0][None])
    return logits.log_softmax(-1).detach().double().numpy()


def test_pruned_loss_with_a_full_range_is_the_full_sum(transducer_loss):
    model = small_model()
    encoder_out = torch.randn(2, 9, 6)
    lens = torch.tensor([9, 6])
    tokens = [[3, 1, 4], [5, 5]]
    _, pruned = transducer_loss(
        model, encoder_out, lens, tokens, prune_range=4, reduction="none"
    )
    for i, y in enumerate(tokens):
        slow = full_sum(joint_log_probs(model, encoder_out[i, : lens[i]], y), y)
        assert float(pruned[i]) == pytest.approx(slow, rel=1e-5)


def test_simple_loss_without_smoothing_is_the_sum_of_two_scores(transducer_loss):
    model = small_model()
    encoder_out, y = torch.randn(1, 7, 6), [2, 6]
    simple, _ = transducer_loss(
        model, encoder_out, torch.tensor([7]), [y], lm_scale=0.0
    )
    am = model.simple_am_proj(encoder_out[0])
    lm = model.simple_lm_proj(model.decoder(torch.tensor([[0] + y])))[0]
    joint = (am[:, None] + lm[None]).log_softmax(-1).detach().double().numpy()
    assert float(simple) == pytest.approx(full_sum(joint, y), rel=1e-5)


@pytest.mark.parametrize("lm_scale, am_scale", [(0.25, 0.0), (0.0, 0.0), (0.2, 0.3)])
def test_smoothed_logprobs_and_gradients_equal_k2(lm_scale, am_scale):
    k2 = pytest.importorskip("k2")
    torch.manual_seed(0)
    lm, am = torch.randn(2, 4, 7), torch.randn(2, 9, 7)
    symbols = torch.tensor([[3, 1, 4], [5, 5, 0]])
    grads = []
    for ours in (True, False):
        inputs = [lm.clone().requires_grad_(), am.clone().requires_grad_()]
        if ours:
            px, py = smoothed_logprobs(*inputs, symbols, lm_scale, am_scale)
        else:
            scales = dict(lm_only_scale=lm_scale, am_only_scale=am_scale)
            px, py = k2.get_rnnt_logprobs_smoothed(
                *inputs, symbols=symbols, termination_symbol=0, **scales
            )
        (px[..., :-1].sin().sum() + py.sin().sum()).backward()
        grads.append([px.detach(), py.detach(), *(x.grad for x in inputs)])
    for mine, theirs in zip(*grads):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lm_scale": 0.0, "prune_range": 2},
        {"lm_scale": 0.1, "am_scale": 0.3, "reduction": "none"},
        {"label_mask_prob": 0.5, "prune_range": 3},
    ],
)
def test_losses_and_gradients_of_the_model_equal_k2(options):
    pytest.importorskip("k2")
    found = []
    for backend in ("torch", "k2"):
        model = small_model()
        torch.manual_seed(1)
        encoder_out = torch.randn(4, 30, 6, requires_grad=True)
        tokens = [[3, 1, 4, 1, 5, 6, 2, 5], [5], [1] * 12, [2, 3]]
        lens = torch.tensor([30, 2, 13, 24])
        losses = pruned_transducer_loss(
            model, encoder_out, lens, tokens, backend=backend, **options
        )
        (losses[0].sum() + 2 * losses[1].sum()).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([*losses, encoder_out.grad, *gradients])
    assert len(found[0]) == len(found[1]) > 10
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_selected_labels_equal_k2_pruning():
    k2 = pytest.importorskip("k2")
    torch.manual_seed(0)
    lm, am = torch.randn(2, 5, 3), torch.randn(2, 6, 3)
    ranges = torch.randint(0, 4, (2, 6, 1)) + torch.arange(2)
    _, pruned = k2.do_rnnt_pruning(am=am, lm=lm, ranges=ranges)
    assert select_labels(lm, ranges).equal(pruned)


def test_masked_labels_have_no_embedding(transducer_loss):
    model = small_model()
    model.decoder.conv.weight.data.abs_()  # no zeros after the ReLU
    encoder_out, lens, y = torch.randn(1, 9, 6), torch.tensor([9]), [[3, 1, 4]]
    arguments = (model, encoder_out, lens, y)
    loss = transducer_loss(*arguments, prune_range=4, lm_scale=0.0)[1]
    masked = transducer_loss(
        *arguments, prune_range=4, lm_scale=0.0, label_mask_prob=1.0
    )[1]
    hidden = model.decoder(torch.tensor([[0, -1, -1, -1]]))
    logits = model.joiner(encoder_out[0][:, None], hidden[0][None])
    slow = full_sum(logits.log_softmax(-1).detach().double().numpy(), y[0])
    assert float(masked) == pytest.approx(slow, rel=1e-5)
    assert float(masked) != pytest.approx(float(loss), rel=1e-3)


def test_batch_order_and_padding_do_not_change_the_loss(transducer_loss):
    model = small_model()
    encoder_out = torch.randn(2, 9, 6)
    lens, tokens = torch.tensor([9, 6]), [[3, 1, 4], [5, 5]]
    together = torch.stack(
        transducer_loss(model, encoder_out, lens, tokens, reduction="none")
    )
    flipped = torch.stack(
        transducer_loss(
            model, encoder_out.flip(0), lens.flip(0), tokens[::-1], reduction="none"
        )
    )
    torch.testing.assert_close(together, flipped.flip(1))
    alone = torch.stack(
        transducer_loss(model, encoder_out[1:, :6], lens[1:], tokens[1:])
    )
    torch.testing.assert_close(together[:, 1], alone)


def test_reduction_sum_is_the_sum_over_the_batch(transducer_loss):
    model = small_model()
    arguments = (model, torch.randn(2, 9, 6), torch.tensor([9, 6]), [[3, 1], [5]])
    total = torch.stack(transducer_loss(*arguments))
    each = torch.stack(transducer_loss(*arguments, reduction="none"))
    torch.testing.assert_close(total, each.sum(1))


def test_every_parameter_gets_a_gradient(transducer_loss):
    model = small_model()
    encoder_out = torch.randn(1, 9, 6, requires_grad=True)
    simple, pruned = transducer_loss(model, encoder_out, torch.tensor([9]), [[3, 1, 4]])
    (simple + pruned).backward()
    assert encoder_out.grad.abs().sum() > 0
    for name, p in model.named_parameters():
        if not name.startswith("ctc_output"):
            assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_too_few_frames_or_no_tokens_are_refused_with_the_index(transducer_loss):
    model = small_model()
    lens, tokens = torch.tensor([4, 3, 4]), [[1, 2], [1, 2, 3], []]
    assert has_alignment(tokens, lens).tolist() == [True, False, False]
    with pytest.raises(ValueError, match=r"\[\(1, 3, 3\), \(2, 4, 0\)\]"):
        transducer_loss(model, torch.randn(3, 4, 6), lens, tokens)


def collapse(path):
    """Merge repeats and drop blanks."""
    return [k for k, _ in itertools.groupby(path) if k != 0]


def test_ctc_loss_is_the_sum_over_all_paths():
    torch.manual_seed(0)
    log_probs = torch.randn(2, 5, 3).log_softmax(-1)
    lens, tokens = torch.tensor([5, 4]), [[1, 1], [2]]
    losses = ctc_loss(log_probs, lens, tokens, reduction="none")
    for i, y in enumerate(tokens):
        total = sum(
            math.exp(sum(float(log_probs[i, t, k]) for t, k in enumerate(path)))
            for path in itertools.product(range(3), repeat=int(lens[i]))
            if collapse(path) == y
        )
        assert float(losses[i]) == pytest.approx(-math.log(total), rel=1e-4)
    assert float(ctc_loss(log_probs, lens, tokens)) == pytest.approx(
        float(losses.sum())
    )


def test_losses_are_float32_under_bfloat16_autocast(transducer_loss):
    model = small_model()
    with torch.autocast("cpu", torch.bfloat16):
        encoder_out = torch.randn(1, 9, 6)
        simple, pruned = transducer_loss(
            model, encoder_out, torch.tensor([9]), [[3, 1, 4]]
        )
        ctc = ctc_loss(model.ctc_output(encoder_out), torch.tensor([9]), [[3, 1, 4]])
    assert simple.dtype == pruned.dtype == ctc.dtype == torch.float32
