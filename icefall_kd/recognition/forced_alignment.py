"""Forced alignment of transcripts with a CTC head.

The most probable CTC path of a transcript assigns frames to each token.  A word lasts
from the first frame of its first token to the last frame of its last token.  Encoder
output frame i is centred at 40 * i + 55 ms and lasts 40 ms
(``icefall_kd.core.frames``).

CTC posteriors are peaky: a token gets few frames, which may be early or late (Zeyer et
al., Why does CTC result in peaky behavior?, 2021, arXiv:2105.14849).  On 100 test
prompts of the Asterisk recipe, its student with Whisper's embeddings places the first
word 25 ms (median) after the onset of the sound, and the end of the last word 175 ms
before the sound has decayed by 25 dB.  A blank penalty or a division by the prior
changes these offsets little and increases their variance, so neither is used.  Use the
times to compare systems against one alignment, which gives all of them the same offset.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Optional

import torch
from lhotse.cut import Cut
from lhotse.supervision import AlignmentItem
from torch import Tensor, nn
from tqdm import tqdm

from icefall_kd import BLANK_ID, ENCODER_SHIFT
from icefall_kd.core.frames import ENCODER_FIRST_CENTRE
from icefall_kd.data.cuts import load_blocks
from icefall_kd.data.features import compute_fbank
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.decoding.search import DecodeOptions
from icefall_kd.fields.codecs import Codec
from icefall_kd.recognition.long_audio import split_windows
from icefall_kd.recognition.recognise import (
    encode_full_context,
    load_field_inputs,
    reference_words,
)

ON_BLANK = -1  # position in frames with a blank
MAX_EXAMPLES = 5  # maximum number of examples in an error message
WordTimes = dict[str, list[AlignmentItem]]  # cut id -> words, in s from the cut's start


def frame_end(frame: int) -> float:
    """Return the end of an encoder output frame in seconds."""
    return ENCODER_FIRST_CENTRE + (frame + 0.5) * ENCODER_SHIFT


def align_cuts(
    model: nn.Module,
    cuts: Iterable[Cut],
    tokenizer: Tokenizer,
    codecs: Optional[Mapping[str, Codec]] = None,
    total: Optional[int] = None,
) -> WordTimes:
    """Align the transcripts of a set.

    Args:
      model: ``AsrModel`` in eval mode, with a trained CTC head.
      cuts: 16 kHz mono, with transcripts.
      tokenizer: tokenizer of the model.
      codecs: codec of each field that the model reads.
      total: number of cuts, for the progress bar.
    Returns:
      the words of each cut.
    Raises:
      ValueError: if transcripts cannot be aligned; the message has their number and
        examples.
    """
    found: WordTimes = {}
    problems: list[str] = []
    for cut in tqdm(cuts, total=total, desc="forced alignment", unit="cut"):
        words = reference_words(cut)
        tokens = [tokenizer.encode(word) for word in words]
        try:
            if [] in tokens:
                raise ValueError(f"{words[tokens.index([])]!r} has no token")
            items = align_words_to_frames(
                ctc_log_probs(model, cut, codecs), words, tokens
            )
        except ValueError as e:
            problems.append(f"{cut.id}: {e}")
            continue
        found[cut.id] = [_limit_to_cut(item, cut.duration) for item in items]
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(problems) + len(found)} cuts cannot be aligned, "
            f"for example {'; '.join(problems[:MAX_EXAMPLES])}; remove them from the "
            "set, as the data gate does"
        )
    return found


def _limit_to_cut(item: AlignmentItem, duration: float) -> AlignmentItem:
    """End a word at the end of its cut; the last frame may be longer."""
    return item._replace(duration=min(item.duration, duration - item.start))


def align_words_to_frames(
    log_probs: Tensor, words: Sequence[str], tokens: Sequence[Sequence[int]]
) -> list[AlignmentItem]:
    """Return start and duration of each word.

    Args:
      log_probs: (T, V) float, in nats, output of the CTC head.
      words: words of the utterance.
      tokens: tokens of each word, at least one per word.
    Returns:
      the words with start and duration in seconds; the score is the geometric mean of
      the path's probabilities over the frames of the word.
    Raises:
      ValueError: if the utterance has too few frames.
    """
    all_tokens = [token for ids in tokens for token in ids]
    path = ctc_path(log_probs, all_tokens)
    symbols = torch.tensor([*all_tokens, BLANK_ID])[path]  # ON_BLANK is the last index
    path_scores = log_probs.double().cpu().gather(1, symbols[:, None]).squeeze(1)
    items, first = [], 0
    for word, ids in zip(words, tokens):
        is_inside = (path >= first) & (path < first + len(ids))
        frames = is_inside.nonzero().squeeze(1)
        begin, last = int(frames[0]), int(frames[-1])
        start = max(0.0, frame_end(begin) - ENCODER_SHIFT)
        score = float(path_scores[begin : last + 1].mean().exp())
        items.append(AlignmentItem(word, start, frame_end(last) - start, score))
        first += len(ids)
    return items


def ctc_path(log_probs: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return, for each frame, the position of its token on the best path.

    Viterbi search over the tokens with optional blanks before, between and after them;
    the blank between equal tokens is mandatory.  Source: Graves et al., Connectionist
    temporal classification, 2006, ICML, section 4.1, with maxima instead of sums.

    Args:
      log_probs: (T, V) float, output of the CTC head.
      tokens: U tokens of the utterance.
    Returns:
      (T,) int64, index 0 to U - 1 into ``tokens``, or :data:`ON_BLANK`.
    Raises:
      ValueError: if T is less than the shortest path.
    """
    needed = min_ctc_frames(tokens)
    if len(log_probs) < needed:
        raise ValueError(
            f"no path: {len(tokens)} tokens need {needed} frames, got {len(log_probs)}"
        )
    if len(log_probs) == 0:
        return torch.zeros(0, dtype=torch.int64)
    states = torch.full((2 * len(tokens) + 1,), BLANK_ID)
    states[1::2] = torch.tensor(tokens, dtype=torch.int64)
    emission = log_probs.double().cpu()[:, states]  # (T, 2 U + 1)
    # whether a path may skip the blank before a token
    can_skip = torch.zeros(len(states), dtype=torch.bool)
    can_skip[3::2] = states[3::2] != states[1:-2:2]
    score = torch.full_like(emission[0], -torch.inf)
    score[:2] = emission[0, :2]
    moves = torch.zeros(emission.shape, dtype=torch.int64)
    for t in range(1, len(emission)):
        before = torch.full((3, len(states)), -torch.inf, dtype=torch.float64)
        before[0] = score
        before[1, 1:] = score[:-1]
        before[2, 2:] = score[:-2]
        before[2, ~can_skip] = -torch.inf
        score, moves[t] = before.max(dim=0)
        score = score + emission[t]
    state = len(score) - 1  # the last blank, or the last token if that is better
    if state > 0 and score[state - 1] > score[state]:
        state -= 1
    path = torch.full((len(moves),), ON_BLANK)
    for t in range(len(moves) - 1, -1, -1):
        if state % 2:
            path[t] = state // 2
        state -= int(moves[t, state])
    return path


def min_ctc_frames(tokens: Sequence[int]) -> int:
    """Return the length of the shortest CTC path of ``tokens``."""
    return len(tokens) + sum(a == b for a, b in zip(tokens, tokens[1:]))


@torch.no_grad()
def ctc_log_probs(
    model: nn.Module,
    cut: Cut,
    codecs: Optional[Mapping[str, Codec]] = None,
    max_utterance: float = DecodeOptions.max_utterance,
) -> Tensor:
    """Return the CTC head's log-probabilities (T, V) of a cut, with full context.

    Args:
      model: ``AsrModel`` in eval mode.
      cut: 16 kHz mono.
      codecs: codec of each field that the model reads.
      max_utterance: in s; a longer cut is split into windows.
    """
    if model.fields:
        return _ctc_output(model, load_field_inputs(model, [cut], codecs or {}))
    device = next(model.parameters()).device
    blocks = (block.numpy() for block in load_blocks(cut))
    parts: list[Tensor] = []
    for window in split_windows(blocks, max_utterance):
        if parts:  # the encoder returns fewer frames than a window lasts
            missing = window.first - sum(map(len, parts))
            parts.append(_blank_log_probs(missing, model.vocab_size).to(device))
        features = compute_fbank([torch.from_numpy(window.wave)], device)
        begin, end = window.first - window.start, window.last - window.start
        parts.append(_ctc_output(model, features)[begin:end])
    return torch.cat(parts)


def _ctc_output(model: nn.Module, features: list[Tensor]) -> Tensor:
    """Return the log-probabilities (T, V) of one utterance."""
    if features[0].size(0) < model.min_frames:
        return torch.zeros(0, model.vocab_size, device=features[0].device)
    encoder_out, lens = encode_full_context(model, features)
    return model.ctc_output(encoder_out)[0, : int(lens[0])]


def _blank_log_probs(frames: int, vocab_size: int) -> Tensor:
    """Return log-probabilities (T, V) of blank frames."""
    log_probs = torch.full((frames, vocab_size), math.log(1e-4 / vocab_size))
    log_probs[:, BLANK_ID] = math.log(1 - 1e-4)
    return log_probs
