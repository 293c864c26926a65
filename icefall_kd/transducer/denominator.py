"""Total score of the denominator of LF-MMI: the CTC topology and a bigram of tokens.

A dense forward-backward pass over the states "in token a" and "in the blank after token
a" needs one (N, V) x (V, V) product for each frame, is exact, and needs no k2.

Source: Povey et al., Purely sequence-trained neural networks for ASR based on
lattice-free MMI, 2016, Interspeech.  As in k2's recipes, the bigram is of tokens
instead of phones.
"""

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from icefall_kd import BLANK_ID


def sum_label_sequences(
    log_probs: Tensor, lens: Tensor, bigram: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the log-sum of the scores of all label sequences, and the occupancies.

    A label sequence has a token or the blank in each frame.  Its score is the sum of
    its log-probabilities and the bigram's log-probability of its tokens, after equal
    neighbours are merged and blanks removed, and of their end.

    The pass takes 24 N T V bytes of memory besides the result.

    Args:
      log_probs: (N, T, V) float.
      lens:      (N,) int64, valid frames, at least 1.
      bigram:    (V, V) float, from :func:`icefall_kd.transducer.bigram.load_bigram`.
    Returns:
      totals (N,) float64 in nats, with gradient; and the probability that a sequence
      has a label in a frame, (N, T, V) in the type of ``log_probs``, without gradient.
    """
    return _ForwardBackward.apply(log_probs, lens, bigram)


class _ForwardBackward(torch.autograd.Function):
    """Forward and backward probabilities, scaled in each frame, in float64."""

    @staticmethod
    def forward(
        ctx: Any, log_probs: Tensor, lens: Tensor, bigram: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, num_frames, _ = log_probs.shape
        move = bigram.to(log_probs.device, torch.float64).exp()
        move[:, BLANK_ID] = 0.0
        end = (1.0 - move.sum(1)).clamp(min=torch.finfo(bigram.dtype).eps)
        stay = 1.0 - move.diagonal()  # a token after itself needs a blank in between

        t = torch.arange(num_frames, device=lens.device).view(-1, 1)
        x = log_probs.double().transpose(0, 1)
        x = x.masked_fill((t >= lens).unsqueeze(2), 0.0)
        peak = x.amax(2, keepdim=True)
        probs = x.sub_(peak).exp_()
        in_token, in_blank = torch.empty_like(probs), torch.empty_like(probs)
        norms = torch.empty_like(peak)
        token = torch.zeros_like(probs[0])
        state = torch.zeros_like(token).index_fill_(1, lens.new_zeros(1), 1.0)
        for p, to, blank, norm in zip(probs, in_token, in_blank, norms):
            token = torch.addcmul(state @ move, token, stay).mul_(p)
            torch.mul(state, p[:, BLANK_ID, None], out=blank)
            torch.sum(token + blank, dim=1, keepdim=True, out=norm)
            token = torch.div(token, norm, out=to)
            state = blank.div_(norm) + token

        n = torch.arange(batch, device=lens.device)
        last = in_token[lens - 1, n] + in_blank[lens - 1, n]
        totals = (last @ end).log() + (norms.log() + peak).cumsum(0)[lens - 1, n, 0]

        is_last = (t == lens - 1).unsqueeze(2)
        after_token = after_blank = end.expand(batch, -1)
        for i in reversed(range(num_frames)):
            if i + 1 < num_frames:
                weighted = after_token * probs[i + 1]
                blank = after_blank * probs[i + 1][:, BLANK_ID, None]
                blank = torch.addmm(blank, weighted, move.T)
                token = torch.addcmul(blank, weighted, stay)
                norm = blank.sum(1, keepdim=True)
                after_blank = torch.where(is_last[i], end, blank / norm)
                after_token = torch.where(is_last[i], end, token / norm)
            in_token[i].mul_(after_token)
            in_token[i, :, BLANK_ID] = (in_blank[i] * after_blank).sum(1)
        occupancies = in_token.div_(in_token.sum(2, keepdim=True))
        occupancies = occupancies.masked_fill_((t >= lens).unsqueeze(2), 0.0)
        occupancies = occupancies.transpose(0, 1).to(log_probs.dtype)
        ctx.save_for_backward(occupancies)
        ctx.mark_non_differentiable(occupancies)
        return totals, occupancies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Optional[Tensor], ...]:
        (occupancies,) = ctx.saved_tensors
        return grad.to(occupancies.dtype).view(-1, 1, 1) * occupancies, None, None
