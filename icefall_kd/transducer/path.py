"""Viterbi paths of a transducer with at most one token in each frame.

Node (t, u) is frame t after u tokens.  The blank leads to (t + 1, u), the next token to
(t + 1, u + 1), as in the searches of ``decoding`` and of sherpa-onnx.  A path has one
node in each frame, and therefore one distribution in each frame.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_kd import BLANK_ID
from icefall_kd.transducer.model import AsrModel


def best_path(log_probs: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return the token that the most probable path emits in each frame.

    Args:
      log_probs: (T, U + 1, V) float, log-probabilities of the joiner at every node.
      tokens:    the U tokens of the utterance.
    Returns:
      (T,) int64, 0 for the blank.
    Raises:
      ValueError: if there are more tokens than frames.
    """
    num_frames, num_tokens = log_probs.size(0), len(tokens)
    if num_tokens > num_frames:
        raise ValueError(f"no path: {num_tokens} tokens in {num_frames} frames")
    y = torch.tensor(list(tokens), dtype=torch.int64, device=log_probs.device)
    blank = log_probs[:, :, BLANK_ID].double()
    label = log_probs[:, :num_tokens].gather(
        2, y.view(1, -1, 1).expand(num_frames, -1, 1)
    )
    label = label.squeeze(2).double()
    score = log_probs.new_full((num_tokens + 1,), float("-inf"), dtype=torch.float64)
    score[0] = 0.0
    emits = torch.zeros_like(blank, dtype=torch.bool)
    for t in range(num_frames):
        stay = score + blank[t]
        move = F.pad(score[:-1] + label[t], (1, 0), value=float("-inf"))
        emits[t] = move > stay  # the best path to (t + 1, u) emits at t
        score = torch.maximum(stay, move)
    emitted, u = [BLANK_ID] * num_frames, num_tokens
    for t, emits_at in reversed(list(enumerate(emits.tolist()))):
        if emits_at[u]:
            u -= 1
            emitted[t] = int(tokens[u])
    return torch.tensor(emitted)


def count_emitted(emitted: Tensor) -> Tensor:
    """Return the number of tokens that a path emits before each frame.

    Args:
      emitted: (..., T) int64, 0 for the blank.
    Returns:
      (..., T) int64, the u of the node in each frame.
    """
    is_token = (emitted != BLANK_ID).to(torch.int64)
    return is_token.cumsum(-1) - is_token


def previous_tokens(emitted: Tensor) -> Tensor:
    """Return the last token that a path emits before each frame, 0 at the start.

    Args:
      emitted: (N, T) int64, 0 for the blank.
    Returns:
      (N, T) int64.
    """
    labels = F.pad(remove_blanks(emitted), (1, 0), value=BLANK_ID)
    return labels.gather(1, count_emitted(emitted))


def score_path(
    model: AsrModel, encoder_out: Tensor, emitted: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the joiner's logits at the nodes of paths, and the nodes' u.

    Source: one-best path distillation, 2021, arXiv:2110.03334, section 3: T
    distributions instead of T x U.

    Args:
      model:       its ``decoder`` and ``joiner`` are used.
      encoder_out: (N, T, C) float.
      emitted:     (N, T) int64, token of each frame, 0 for the blank and padding.
    Returns:
      (N, T, V) float and (N, T) int64.
    """
    u = count_emitted(emitted)
    labels = F.pad(remove_blanks(emitted), (1, 0), value=BLANK_ID)
    decoder_out = model.joiner.decoder_proj(model.decoder(labels))
    index = u.unsqueeze(-1).expand(-1, -1, decoder_out.size(2))
    projected = model.joiner.encoder_proj(encoder_out)
    logits = model.joiner(projected, decoder_out.gather(1, index), project_input=False)
    return logits, u


def remove_blanks(emitted: Tensor) -> Tensor:
    """Return the tokens of paths.

    Args:
      emitted: (N, T) int64, 0 for the blank.
    Returns:
      (N, U) int64, padded with 0.
    """
    is_token = emitted != BLANK_ID
    width = int(is_token.sum(1).max())
    # Blanks go to one more column, which is cut off.
    column = count_emitted(emitted).masked_fill(~is_token, width)
    labels = emitted.new_zeros(len(emitted), width + 1).scatter(1, column, emitted)
    return labels[:, :width]
