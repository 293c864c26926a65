"""Hotwords: phrases that modified beam search prefers, such as names and jargon.

All phrases form one automaton over tokens.  Source: Aho and Corasick, Efficient string
matching, 1975.  Each token of a phrase adds a bonus to the score of the hypothesis.  If
the hypothesis leaves the phrase before its end, the search subtracts these bonuses.  At
the end of the phrase it keeps them, and the next phrase may start.

sherpa-onnx has the same rules (``ContextGraph``, not strict), so a phrase has the same
effect in both.  It reads a normalised copy of the file, :attr:`Hotwords.text`.
"""

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor

from icefall_kd.core.files import Pathlike, read_text
from icefall_kd.data.tokens import WORD_START, Tokenizer

Phrase = tuple[Sequence[int], float]  # tokens, and the bonus of each token in nats


@dataclass
class _State:
    """A state of the automaton: a prefix of one or more phrases.

    Attributes:
      bonus: bonus of the last token.
      earned: sum of the bonuses from the start of the phrase.
      is_end: whether a phrase ends here.
      number: index of the state.
      next: token -> next state.
      fail: state of the longest proper suffix that is also a prefix of a phrase.
    """

    bonus: float = 0.0
    earned: float = 0.0
    is_end: bool = False
    number: int = 0
    next: dict[int, "_State"] = field(default_factory=dict)
    fail: Optional["_State"] = None


@dataclass(frozen=True, eq=False)
class Hotwords:
    """The automaton as tables, for batches of hypotheses.

    Attributes:
      next: (S, V) int64, next state after a token; state 0 is the start.
      gain: (S, V) float32, change of the score by a token.
      unfinished: (S,) float32, bonus to subtract if the utterance ends in a state.
      path: file of the phrases.
      text: the phrases in the file format of sherpa-onnx.
      score: bonus of each token in nats, for lines without a bonus.
      sha256: SHA-256 of the phrases' tokens and bonuses.
    """

    next: Tensor
    gain: Tensor
    unfinished: Tensor
    path: Optional[Path] = None
    text: str = ""
    score: float = 0.0
    sha256: str = ""

    def to(self, device: torch.device) -> "Hotwords":
        """Return a copy with its tables on ``device``."""
        return replace(
            self,
            next=self.next.to(device),
            gain=self.gain.to(device),
            unfinished=self.unfinished.to(device),
        )


def build_hotwords(phrases: Iterable[Phrase], vocab_size: int) -> Hotwords:
    """Return the automaton of ``phrases``.

    If phrases start with the same tokens, these tokens get the largest of
    their bonuses.

    Raises:
      ValueError: if there is no phrase, a phrase is empty, or a bonus is not positive.
    """
    phrases = [(list(tokens), float(bonus)) for tokens, bonus in phrases]
    if not phrases:
        raise ValueError("hotwords: no phrase. Give at least one")
    for number, (tokens, bonus) in enumerate(phrases, 1):
        if not tokens or bonus <= 0:
            raise ValueError(
                f"hotwords: phrase {number} has the tokens {tokens} and the bonus "
                f"{bonus}. Give at least one token and a positive bonus"
            )
    states = _link_states(_build_trie(phrases))
    earned = torch.tensor([state.earned for state in states])
    shape = (len(states), vocab_size)
    next_states = torch.zeros(shape, dtype=torch.int64)
    total = torch.zeros(shape)  # bonus of the hypothesis after a token
    for n, state in enumerate(states):
        if state.fail is not None:  # has a smaller number, so its row is complete
            fail = state.fail.number
            next_states[n], total[n] = next_states[fail], total[fail]
        for token, reached in state.next.items():
            end = _longest_end(reached)
            next_states[n, token] = reached.number if end is None else 0
            total[n, token] = (end or reached).earned
    gain = total - earned[:, None]
    for n, state in enumerate(states):
        for token, reached in state.next.items():
            # Not 0 if a later phrase raised a bonus on the way to this state.
            gain[n, token] += reached.bonus - (reached.earned - state.earned)
    digest = hashlib.sha256(repr(phrases).encode()).hexdigest()
    return Hotwords(next_states, gain, earned, sha256=digest)


def _build_trie(phrases: Sequence[Phrase]) -> _State:
    """Return the root of the prefix tree of ``phrases``."""
    root = _State()
    for tokens, bonus in phrases:
        state = root
        for token in tokens:
            reached = state.next.setdefault(token, _State(bonus))
            reached.bonus = max(bonus, reached.bonus)
            reached.earned = state.earned + reached.bonus
            state = reached
        state.is_end = True
    return root


def _link_states(root: _State) -> list[_State]:
    """Set number and fail state of each state; return the states in order of depth."""
    states: list[_State] = []
    queue: deque[_State] = deque([root])
    while queue:
        state = queue.popleft()
        state.number = len(states)
        states.append(state)
        for token, reached in state.next.items():
            suffix = state.fail
            while suffix is not None and token not in suffix.next:
                suffix = suffix.fail
            reached.fail = root if suffix is None else suffix.next[token]
            queue.append(reached)
    return states


def _longest_end(state: _State) -> Optional[_State]:
    """Return the state of the longest phrase that ends here, or None."""
    end: Optional[_State] = state
    while end is not None and not end.is_end:
        end = end.fail
    return end


def read_hotwords(path: Pathlike, tokenizer: Tokenizer, score: float) -> Hotwords:
    """Read phrases from a text file, one phrase per line.

    A phrase is written as in the transcripts.  A line may end with a bonus for each of
    its tokens, for example ``:2.5``.  BPE pieces are also accepted: "▁P RE S S" is
    "PRESS".

    Args:
      path: UTF-8 text file.
      tokenizer: tokenizer of the model.
      score: bonus of a token for lines without a bonus, in nats.
    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if the file is not UTF-8 or has no phrase, a bonus is invalid, or a
        phrase has letters without a token; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: hotwords file not found")
    phrases = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        try:
            phrase = _parse_line(line, tokenizer, score)
        except ValueError as e:
            raise ValueError(f"{path}: line {number}: {e}") from e
        if phrase is not None:
            phrases.append(phrase)
    if not phrases:
        raise ValueError(f"{path}: no hotwords in the file; write one phrase per line")
    hotwords = build_hotwords(phrases, tokenizer.vocab_size)
    text = "".join(f"{tokenizer.decode(ids)} :{bonus}\n" for ids, bonus in phrases)
    return replace(hotwords, path=path, text=text, score=score)


def _parse_line(line: str, tokenizer: Tokenizer, score: float) -> Optional[Phrase]:
    words = line.split()
    if words and words[-1].startswith(":"):
        score = _parse_bonus(words.pop())
    if not words:
        return None
    if any(WORD_START in word for word in words):
        words = "".join(words).replace(WORD_START, " ").split()
    # sherpa-onnx also encodes each word alone
    tokens = [token for word in words for token in tokenizer.encode(word)]
    decoded = tokenizer.decode(tokens).split()  # the words in the copy for sherpa-onnx
    if any(word.startswith(":") for word in (*words, *decoded)):
        raise ValueError("write the bonus, for example :2.5, once at the end")
    if not tokens:  # only invisible characters
        return None
    if tokenizer.unk_id in tokens:
        raise ValueError(
            f"'{' '.join(words)}' has letters without a token; use the spelling of the "
            "transcripts"
        )
    return tokens, score


def _parse_bonus(text: str) -> float:
    try:
        bonus = float(text[1:])
    except ValueError:
        bonus = 0.0
    if not 0 < bonus < math.inf:
        raise ValueError(f"'{text}' is not a positive bonus, for example :2.5")
    return bonus
