"""Transducer and CTC losses; the only place in training that imports k2.

Both compute in float32 with autocast off: sums of thousands of log-probabilities
lose their small differences in half precision.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from icefall_kd import BLANK_ID
from icefall_kd.transducer.model import NO_TOKEN, AsrModel


def pad_tokens(tokens: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return token lists as one (N, U) int64 tensor, padded with the blank."""
    longest = max((len(t) for t in tokens), default=0)
    rows: list[list[int]] = [list(t) + [BLANK_ID] * (longest - len(t)) for t in tokens]
    return torch.tensor(rows, dtype=torch.int64, device=device).view(-1, longest)


def has_alignment(tokens: Sequence[Sequence[int]], lens: Tensor) -> Tensor:
    """Tell which utterances both losses can align.

    An utterance needs at least one token and one frame more than it has tokens
    (k2's pruning needs as many frames as tokens, and one must be left for the
    closing blank).

    Returns:
      (N,) bool, on the device of ``lens``.
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
) -> tuple[Tensor, Tensor]:
    """Compute the simple and the pruned transducer loss.

    The simple loss, smoothed as (1 - am - lm) * joint + am * acoustic + lm *
    language, finds for each frame the ``prune_range`` labels worth scoring; the
    pruned loss runs the full joiner on those alone.  Source: Kuang et al., Pruned
    RNN-T for fast, memory-efficient ASR training, 2022, arXiv:2206.13236.

    Args:
      encoder_out:      (N, T, C) float.
      encoder_out_lens: (N,) int64.
      tokens: N lists of token ids, without blanks.
      prune_range: labels scored at each frame, at least 2.
      am_scale, lm_scale: smoothing of the simple loss.
      label_mask_prob: of hiding a label from the predictor, which then sees no token
        in its place; a predictor that cannot rely on its context does not learn the
        texts of a small corpus by heart.
      reduction: "sum" over the batch or "none".
    Returns:
      (simple, pruned), nats: scalars, or (N,) each when ``reduction`` is "none".
      A value can be infinite or NaN where an utterance or the model is at fault.
    Raises:
      ValueError: if an utterance has no token, or not more frames than tokens.
    """
    import k2

    usable = has_alignment(tokens, encoder_out_lens)
    if not usable.all():
        where = (~usable).nonzero().flatten().tolist()
        raise ValueError(
            "no alignment for utterances "
            f"{[(i, int(encoder_out_lens[i]), len(tokens[i])) for i in where]} "
            "(index, frames, tokens): each needs a token and more frames than tokens"
        )
    y = pad_tokens(tokens, encoder_out.device)
    boundary = y.new_zeros(len(tokens), 4)
    boundary[:, 2] = torch.tensor([len(t) for t in tokens])
    boundary[:, 3] = encoder_out_lens
    seen = y
    if label_mask_prob:
        hidden = torch.rand(y.shape, device=y.device) < label_mask_prob
        seen = y.masked_fill(hidden, NO_TOKEN)
    decoder_out = model.decoder(F.pad(seen, (1, 0), value=BLANK_ID))
    lm = model.simple_lm_proj(decoder_out)
    am = model.simple_am_proj(encoder_out)
    with torch.autocast(encoder_out.device.type, enabled=False):
        px, py = smoothed_logprobs(lm.float(), am.float(), y, lm_scale, am_scale)
        end = encoder_out_lens.view(-1, 1, 1).expand(-1, px.shape[1], -1)
        px = px.scatter(2, end, float("-inf"))  # no label behind the last frame
        scores, (px_grad, py_grad) = k2.mutual_information_recursion(
            px, py, boundary, return_grad=True
        )
    simple = -scores.sum() if reduction == "sum" else -scores
    ranges = k2.get_rnnt_prune_ranges(
        px_grad=px_grad, py_grad=py_grad, boundary=boundary, s_range=prune_range
    )
    # Projected before pruning: each frame and label once, not once per pair.
    am = model.joiner.encoder_proj(encoder_out).unsqueeze(2)
    lm = select_labels(model.joiner.decoder_proj(decoder_out), ranges)
    logits = model.joiner(am, lm, project_input=False)  # (N, T, R, V)
    with torch.autocast(encoder_out.device.type, enabled=False):
        pruned = k2.rnnt_loss_pruned(
            logits=logits.float(),
            symbols=y,
            ranges=ranges,
            termination_symbol=BLANK_ID,
            boundary=boundary,
            reduction=reduction,
        )
    return simple, pruned


def smoothed_logprobs(
    lm: Tensor, am: Tensor, symbols: Tensor, lm_scale: float, am_scale: float
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of labels and blanks of the simple joiner.

    The joint probability is the normalised exp(lm + am); it is smoothed with what the
    language part says alone, and the acoustic part under the mean language part:
    (1 - am - lm) * joint + am * acoustic + lm * language.  These are the values of
    k2's ``get_rnnt_logprobs_smoothed`` (arXiv:2206.13236, section 3.2); picking the
    labels before frames are paired with them keeps the backward pass from filling
    (N, U, T, V) zeros, a tenth of a training step on a CPU.

    Args:
      lm: (N, U + 1, V) float32.
      am: (N, T, V) float32.
      symbols: (N, U) int64.
      lm_scale, am_scale: weights of the two parts alone, in [0, 1].
    Returns:
      px (N, U, T + 1), of the next label, -inf behind the last frame; and
      py (N, U + 1, T), of the blank.
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
    """Return the label states that are scored at each frame.

    The language half of k2's ``do_rnnt_pruning``, without zeros for every pair of
    frame and label in the backward pass.

    Args:
      lm: (N, U + 1, C).
      ranges: (N, T, R) int64, of ``k2.get_rnnt_prune_ranges``.
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
      scalar, or (N,) when ``reduction`` is "none", in nats; infinite where an
      utterance has fewer frames than tokens and repetitions.
    """
    with torch.autocast(log_probs.device.type, enabled=False):
        return F.ctc_loss(
            log_probs.float().transpose(0, 1),  # (N, T, V) -> (T, N, V)
            # Lengths and targets on the CPU choose torch's own kernel, which has
            # no limit on lengths, over cuDNN's.
            torch.tensor([t for row in tokens for t in row], dtype=torch.int64),
            lens.cpu(),
            torch.tensor([len(t) for t in tokens], dtype=torch.int64),
            blank=BLANK_ID,
            reduction=reduction,
        )
