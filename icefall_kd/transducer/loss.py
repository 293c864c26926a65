"""Transducer and CTC losses, as in icefall's forward_transducer and forward_ctc.

The losses are computed in float32 without autocast, because sums of thousands of
log-probabilities lose small differences in half precision.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from icefall_kd import BLANK_ID
from icefall_kd.transducer.model import NO_TOKEN, AsrModel
from icefall_kd.transducer.rnnt import Backend, load_backend


def pad_tokens(tokens: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return N lists of token ids as a (N, U) int64 tensor, padded with the blank."""
    longest = max((len(t) for t in tokens), default=0)
    rows: list[list[int]] = [list(t) + [BLANK_ID] * (longest - len(t)) for t in tokens]
    return torch.tensor(rows, dtype=torch.int64, device=device).view(-1, longest)


def has_alignment(tokens: Sequence[Sequence[int]], lens: Tensor) -> Tensor:
    """Return a (N,) bool mask of the utterances that the transducer losses can align.

    An utterance needs a token, and more frames than tokens: k2's pruning needs a frame
    for each token, and the last blank needs one more.

    Args:
      tokens: N lists of token ids, without blanks.
      lens:   (N,) int64, frames of the encoder's output.
    """
    counts = torch.tensor([len(t) for t in tokens], device=lens.device)
    return (counts > 0) & (lens > counts)


def pruned_transducer_loss(
    model: AsrModel,
    encoder_out: Tensor,
    encoder_out_lens: Tensor,
    tokens: Sequence[Sequence[int]],
    *,
    prune_range: int = 5,
    am_scale: float = 0.0,
    lm_scale: float = 0.25,
    label_mask_prob: float = 0.0,
    reduction: str = "sum",
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Compute the simple and the pruned transducer loss.

    The gradient of the simple loss (`smoothed_logprobs`) selects ``prune_range`` labels
    for each frame.  The pruned loss evaluates the joiner only for these labels.

    Source: Kuang et al., Pruned RNN-T for fast, memory-efficient ASR training, 2022,
    arXiv:2206.13236.

    Args:
      model: has predictor, joiner and the projections ``simple_am_proj`` and
        ``simple_lm_proj``.
      encoder_out:      (N, T, C) float.
      encoder_out_lens: (N,) int64, valid frames.
      tokens: N lists of token ids, without blanks.
      prune_range: labels scored at each frame, at least 2.
      am_scale, lm_scale: smoothing of the simple loss.
      label_mask_prob: probability that a label in the predictor's input becomes
        `NO_TOKEN`, so that the predictor does not memorise the texts of a small corpus.
      reduction: "sum" over the batch or "none".
      backend: see :func:`icefall_kd.transducer.rnnt.load_backend`.
    Returns:
      (simple, pruned) float32, nats: scalars, or (N,) each if ``reduction`` is "none".
      A value may be infinite or NaN for faulty audio or a diverged model.
    Raises:
      ValueError: if an utterance has no token, or no more frames than tokens.
      ImportError: if the backend is "k2" and k2 cannot be imported.
    """
    rnnt = load_backend(backend, encoder_out.device)
    aligned = has_alignment(tokens, encoder_out_lens)
    if not aligned.all():
        where = (~aligned).nonzero().flatten().tolist()
        raise ValueError(
            "no alignment for utterances "
            f"{[(i, int(encoder_out_lens[i]), len(tokens[i])) for i in where]} "
            "(index, frames, tokens): each needs a token and more frames than tokens"
        )
    y = pad_tokens(tokens, encoder_out.device)
    boundary = y.new_zeros(len(tokens), 4)
    boundary[:, 2] = torch.tensor([len(t) for t in tokens])
    boundary[:, 3] = encoder_out_lens
    context = y
    if label_mask_prob:
        mask = torch.rand(y.shape, device=y.device) < label_mask_prob
        context = y.masked_fill(mask, NO_TOKEN)
    decoder_out = model.decoder(F.pad(context, (1, 0), value=BLANK_ID))
    lm = model.simple_lm_proj(decoder_out)
    am = model.simple_am_proj(encoder_out)
    with torch.autocast(encoder_out.device.type, enabled=False):
        scores, px_grad, py_grad = sum_smoothed_paths(
            rnnt, lm.float(), am.float(), y, boundary, lm_scale, am_scale
        )
    simple = -scores.sum() if reduction == "sum" else -scores
    ranges = rnnt.get_rnnt_prune_ranges(
        px_grad=px_grad, py_grad=py_grad, boundary=boundary, s_range=prune_range
    )
    # Project before pruning: once for each frame and label, not for each pair.
    am = model.joiner.encoder_proj(encoder_out).unsqueeze(2)
    lm = select_labels(model.joiner.decoder_proj(decoder_out), ranges)
    logits = model.joiner(am, lm, project_input=False)  # (N, T, R, V)
    with torch.autocast(encoder_out.device.type, enabled=False):
        pruned = rnnt.rnnt_loss_pruned(
            logits=logits.float(),
            symbols=y,
            ranges=ranges,
            termination_symbol=BLANK_ID,
            boundary=boundary,
            reduction=reduction,
        )
    return simple, pruned


def sum_smoothed_paths(
    rnnt: ModuleType,
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    boundary: Tensor,
    lm_scale: float,
    am_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-sum over the alignments of the simple joiner, and their arcs.

    Args:
      rnnt: from :func:`icefall_kd.transducer.rnnt.load_backend`.
      lm, am, symbols, lm_scale, am_scale: see :func:`smoothed_logprobs`.
      boundary: (N, 4) int64, each row (0, 0, labels, frames).
    Returns:
      scores (N,) in nats; the occupancies of the arcs of labels (N, U, T + 1) and
      blanks (N, U + 1, T), without gradient.
    """
    px, py = smoothed_logprobs(lm, am, symbols, lm_scale, am_scale)
    end = boundary[:, 3].view(-1, 1, 1).expand(-1, px.shape[1], -1)
    px = px.scatter(2, end, float("-inf"))  # no label after the last frame
    scores, (px_grad, py_grad) = rnnt.mutual_information_recursion(
        px, py, boundary, return_grad=True
    )
    return scores, px_grad, py_grad


def smoothed_logprobs(
    lm: Tensor, am: Tensor, symbols: Tensor, lm_scale: float, am_scale: float
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of labels and blanks of the simple joiner.

    The result is (1 - am_scale - lm_scale) * joint + am_scale * acoustic
    + lm_scale * language, where

    - joint is the log-softmax of lm + am;
    - language is the log-softmax of lm;
    - acoustic is the log-softmax of am plus the logarithm of the mean language
      probabilities.

    The values equal those of k2's ``get_rnnt_logprobs_smoothed`` (arXiv:2206.13236,
    section 3.2).  This function selects the labels before it pairs them with frames.
    Its backward pass therefore fills no (N, U, T, V) zeros, which saves a tenth of a
    training step on a CPU.

    Args:
      lm: (N, U + 1, V) float32, scores of the predictor.
      am: (N, T, V) float32, scores of the encoder.
      symbols: (N, U) int64, labels.
      lm_scale, am_scale: in [0, 1].
    Returns:
      px (N, U, T + 1) of the next label, -inf after the last frame; and
      py (N, U + 1, T) of the blank.
    """
    num_labels, frames = symbols.shape[1], am.shape[1]
    tiny = torch.finfo(am.dtype).tiny
    am_max, lm_max = am.amax(2, keepdim=True), lm.amax(2, keepdim=True)
    am_probs, lm_probs = (am - am_max).exp(), (lm - lm_max).exp()
    joint = (lm_probs @ am_probs.transpose(1, 2) + tiny).log()
    joint = joint + lm_max + am_max.transpose(1, 2)  # (N, U + 1, T), normalisers
    px_am = am.transpose(1, 2).gather(1, symbols.unsqueeze(2).expand(-1, -1, frames))
    px_lm = lm[:, :num_labels].gather(2, symbols.unsqueeze(2))
    py_am = am[:, :, BLANK_ID].unsqueeze(1)
    py_lm = lm[:, :, BLANK_ID].unsqueeze(2)

    both = 1.0 - lm_scale - am_scale
    px = both * (px_am + px_lm - joint[:, :num_labels])
    py = both * (py_am + py_lm - joint)
    lm_norm = lm_probs.sum(2, keepdim=True)
    if lm_scale:
        norm = lm_norm.log() + lm_max
        px = px + lm_scale * (px_lm - norm[:, :num_labels])
        py = py + lm_scale * (py_lm - norm)
    if am_scale:
        unigram = (lm_probs / lm_norm).mean((0, 1)) + tiny  # (V,)
        norm = ((am_probs @ unigram).log() + am_max.squeeze(2)).unsqueeze(1)
        unigram = unigram.log()
        px = px + am_scale * (px_am + unigram[symbols].unsqueeze(2) - norm)
        py = py + am_scale * (py_am + unigram[BLANK_ID] - norm)
    return F.pad(px, (0, 1), value=float("-inf")), py


def select_labels(lm: Tensor, ranges: Tensor) -> Tensor:
    """Return the predictor's outputs for the labels that each frame scores.

    It computes the second result of k2's ``do_rnnt_pruning``, but its backward pass
    fills no zeros for every pair of frame and label.

    Args:
      lm: (N, U + 1, C), output of the predictor.
      ranges: (N, T, R) int64, from ``get_rnnt_prune_ranges``.
    Returns:
      (N, T, R, C).
    """
    batch, num_states, channels = lm.shape
    first = torch.arange(batch, device=lm.device).view(-1, 1, 1) * num_states
    return F.embedding(ranges + first, lm.reshape(-1, channels))


def ctc_loss(
    log_probs: Tensor,
    lens: Tensor,
    tokens: Sequence[Sequence[int]],
    reduction: str = "sum",
) -> Tensor:
    """Compute the CTC loss.

    Source: Graves et al., Connectionist temporal classification, 2006, ICML.

    Args:
      log_probs: (N, T, V) float, log-probabilities.
      lens:      (N,) int64, valid frames.
      tokens: N lists of token ids, without blanks.
      reduction: "sum" over the batch or "none".
    Returns:
      scalar, or (N,) if ``reduction`` is "none", in nats; infinite if an utterance has
      fewer frames than its tokens plus its pairs of equal neighbours.
    """
    with torch.autocast(log_probs.device.type, enabled=False):
        return F.ctc_loss(
            log_probs.float().transpose(0, 1),  # (N, T, V) -> (T, N, V)
            # With lengths and targets on the CPU, torch does not use the kernel of
            # cuDNN, which limits the lengths.
            torch.tensor([t for row in tokens for t in row], dtype=torch.int64),
            lens.cpu(),
            torch.tensor([len(t) for t in tokens], dtype=torch.int64),
            blank=BLANK_ID,
            reduction=reduction,
        )
