"""Transducer and CTC losses; the only place in training that imports k2.

Both compute in float32 with autocast off: sums of thousands of log-probabilities
lose their small differences in half precision.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from icefall_kd import BLANK_ID
from icefall_kd.transducer.model import AsrModel


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
    decoder_out = model.decoder(F.pad(y, (1, 0), value=BLANK_ID))
    lm = model.simple_lm_proj(decoder_out)
    am = model.simple_am_proj(encoder_out)
    with torch.autocast(encoder_out.device.type, enabled=False):
        simple, (px_grad, py_grad) = k2.rnnt_loss_smoothed(
            lm=lm.float(),
            am=am.float(),
            symbols=y,
            termination_symbol=BLANK_ID,
            lm_only_scale=lm_scale,
            am_only_scale=am_scale,
            boundary=boundary,
            reduction=reduction,
            return_grad=True,
        )
    ranges = k2.get_rnnt_prune_ranges(
        px_grad=px_grad, py_grad=py_grad, boundary=boundary, s_range=prune_range
    )
    # Projected before pruning: each frame and label once, not once per pair.
    am, lm = k2.do_rnnt_pruning(
        am=model.joiner.encoder_proj(encoder_out),
        lm=model.joiner.decoder_proj(decoder_out),
        ranges=ranges,
    )
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
