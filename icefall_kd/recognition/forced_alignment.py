"""When each word of a transcript was said, by the CTC head of a model.

The most probable CTC path of the transcript's tokens gives every token the frames in
which it stands; a word lasts from the first frame of its first token to the last frame
of its last.  Where a frame lies in time is said in ``icefall_kd.core.frames``: frame
i is centred at 40 * i + 55 ms and stands for 40 ms.

A CTC head speaks in spikes: it needs few frames of a token and is free to choose which
(Zeyer et al., Why does CTC result in peaky behavior?, 2021, arXiv:2105.14849).  On the
100 test prompts of the Asterisk recipe, its student with Whisper's embeddings puts the
first word 25 ms (median) behind the onset of the sound, and the end of the last word
175 ms before the sound has faded by 25 dB; a penalty on the blank or a division by the
prior moves this little and scatters it more, so neither is here.  These times are
therefore for comparing systems that are held against one alignment: their common offset
is the aligner's.
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
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.decoding.search import DecodeOptions
from icefall_kd.fields.codecs import Codec
from icefall_kd.recognition.long_audio import cut_windows
from icefall_kd.recognition.recognise import (
    encode_full_context,
    field_inputs,
    reference_words,
)

BETWEEN = -1  # in the place of a token, where the path is in a blank
SHOWN = 5  # examples in a message
WordTimes = dict[str, list[AlignmentItem]]  # cut id -> its words, seconds of the cut


def frame_end(frame: int) -> float:
    """Return the second at which the time of an encoder output frame ends."""
    return ENCODER_FIRST_CENTRE + (frame + 0.5) * ENCODER_SHIFT


def ctc_path(log_probs: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return the place of the token in which the best path is in each frame.

    Viterbi over the tokens with a blank before, between and behind them; a blank may
    be left out, except between two equal tokens.  Source: Graves et al., Connectionist
    temporal classification, 2006, ICML, section 4.1, its sums replaced by maxima.

    Args:
      log_probs: (T, V) float, of the CTC head.
      tokens:    the U tokens of the utterance.
    Returns:
      (T,) int64: 0 .. U - 1, or :data:`BETWEEN`.
    Raises:
      ValueError: if there are fewer frames than any path needs.
    """
    least = frames_needed(tokens)
    if len(log_probs) < least:
        raise ValueError(
            f"no path: {len(tokens)} tokens need {least} frames, there are "
            f"{len(log_probs)}"
        )
    if len(log_probs) == 0:
        return torch.zeros(0, dtype=torch.int64)
    states = torch.full((2 * len(tokens) + 1,), BLANK_ID)
    states[1::2] = torch.tensor(tokens, dtype=torch.int64)
    emission = log_probs.double().cpu()[:, states]  # (T, 2 U + 1)
    skips = torch.zeros(len(states), dtype=torch.bool)  # from two states before
    skips[3::2] = states[3::2] != states[1:-2:2]
    score = torch.full_like(emission[0], -torch.inf)
    score[:2] = emission[0, :2]
    moves = torch.zeros(emission.shape, dtype=torch.int64)
    for t in range(1, len(emission)):
        before = torch.full((3, len(states)), -torch.inf, dtype=torch.float64)
        before[0] = score
        before[1, 1:] = score[:-1]
        before[2, 2:] = score[:-2]
        before[2, ~skips] = -torch.inf
        score, moves[t] = before.max(dim=0)
        score = score + emission[t]
    return _follow(moves, _last_state(score))


def frames_needed(tokens: Sequence[int]) -> int:
    """Return the length of the shortest CTC path of ``tokens``."""
    return len(tokens) + sum(a == b for a, b in zip(tokens, tokens[1:]))


def _last_state(score: Tensor) -> int:
    """Return the better of the last blank and the last token."""
    last = len(score) - 1
    return last - 1 if last > 0 and score[last - 1] > score[last] else last


def _follow(moves: Tensor, state: int) -> Tensor:
    """Go back from the last state; return the place of each frame's token."""
    path = torch.full((len(moves),), BETWEEN)
    for t in range(len(moves) - 1, -1, -1):
        if state % 2:
            path[t] = state // 2
        state -= int(moves[t, state])
    return path


def word_times(
    log_probs: Tensor, words: Sequence[str], tokens: Sequence[Sequence[int]]
) -> list[AlignmentItem]:
    """Return when each word was said.

    Args:
      log_probs: (T, V) float, of the CTC head.
      words:     of the utterance.
      tokens:    of each word, at least one.
    Returns:
      the words with start and duration in seconds; the score is the geometric mean of
      the path's probabilities over the frames of the word.
    Raises:
      ValueError: if there are fewer frames than any path needs.
    """
    flat = [token for some in tokens for token in some]
    path = ctc_path(log_probs, flat)
    symbols = torch.tensor([*flat, BLANK_ID])[path]  # BETWEEN is the last place
    score_path = log_probs.double().cpu().gather(1, symbols[:, None]).squeeze(1)
    items, first = [], 0
    for word, some in zip(words, tokens):
        inside = (path >= first) & (path < first + len(some))
        frames = inside.nonzero().squeeze(1)
        begin, last = int(frames[0]), int(frames[-1])
        start = max(0.0, frame_end(begin) - ENCODER_SHIFT)
        score = float(score_path[begin : last + 1].mean().exp())
        items.append(AlignmentItem(word, start, frame_end(last) - start, score))
        first += len(some)
    return items


@torch.no_grad()
def ctc_log_probs(
    model: nn.Module,
    cut: Cut,
    codecs: Optional[Mapping[str, Codec]] = None,
    max_utterance: float = DecodeOptions.max_utterance,
) -> Tensor:
    """Return the CTC head's log-probabilities (T, V) of a cut, with full context.

    Args:
      codecs: of the fields that the cut carries, for a model that reads fields.
      max_utterance: in s; a longer cut is encoded in windows cut in its pauses.
    """
    from icefall_kd.data.features import compute_fbank

    if model.fields:
        return _log_probs(model, field_inputs(model, [cut], codecs or {}))
    device = next(model.parameters()).device
    blocks = (block.numpy() for block in load_blocks(cut))
    found: list[Tensor] = []
    for window in cut_windows(blocks, max_utterance):
        if found:  # the encoder gives a window fewer frames than its time has
            missing = window.first - sum(map(len, found))
            found.append(_blanks(missing, model.vocab_size).to(device))
        log_probs = _log_probs(
            model, compute_fbank([torch.from_numpy(window.wave)], device)
        )
        begin, end = window.first - window.start, window.last - window.start
        found.append(log_probs[begin:end])
    return torch.cat(found)


def _log_probs(model: nn.Module, features: list[Tensor]) -> Tensor:
    """Return the log-probabilities (T, V) of one utterance."""
    if features[0].size(0) < model.min_frames:
        return torch.zeros(0, model.vocab_size, device=features[0].device)
    encoder_out, lens = encode_full_context(model, features)
    return model.ctc_output(encoder_out)[0, : int(lens[0])]


def _blanks(frames: int, vocab_size: int) -> Tensor:
    """Return log-probabilities (T, V) of frames that are blank."""
    log_probs = torch.full((frames, vocab_size), math.log(1e-4 / vocab_size))
    log_probs[:, BLANK_ID] = math.log(1 - 1e-4)
    return log_probs


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
      tokenizer: of the model.
      codecs: of the fields that the cuts carry, for a model that hears teachers.
      total: number of cuts, for the progress bar.
    Returns:
      the words of each cut, none where nothing is said.
    Raises:
      ValueError: if transcripts cannot be aligned; the message counts and names them.
    """
    found: WordTimes = {}
    problems: list[tuple[str, str]] = []
    for cut in tqdm(cuts, total=total, desc="forced alignment", unit="cut"):
        words = reference_words(cut)
        tokens = [tokenizer.encode(word) for word in words]
        try:
            if [] in tokens:
                raise ValueError(f"{words[tokens.index([])]!r} has no token")
            items = word_times(ctc_log_probs(model, cut, codecs), words, tokens)
        except ValueError as e:
            problems.append((cut.id, str(e)))
            continue
        found[cut.id] = [_within(item, cut.duration) for item in items]
    if problems:
        shown = "; ".join(
            f"{cut_id}: {problem}" for cut_id, problem in problems[:SHOWN]
        )
        raise ValueError(
            f"{len(problems)} of {len(problems) + len(found)} cuts cannot be aligned, "
            f"for example {shown}; leave them out of the set, as the data gate does"
        )
    return found


def _within(item: AlignmentItem, duration: float) -> AlignmentItem:
    """End a word where its cut ends; the last frame may stand for a little more."""
    return item._replace(duration=min(item.duration, duration - item.start))
