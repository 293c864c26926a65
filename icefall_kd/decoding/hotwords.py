"""Phrases that a beam search shall rather find than miss: names, commands, jargon.

All phrases together are one automaton over tokens, after Aho and Corasick, Efficient
string matching, 1975.  Every token along a phrase earns a bonus; when the hypothesis
leaves the phrase before its end, what it had earned is taken back; at the end it keeps
the bonus, and the next phrase may begin.  The rules are those of sherpa-onnx (its
ContextGraph, not strict), so that a phrase helps as much here as in the deployed
recogniser.  The file of phrases is read here alone: sherpa-onnx is given a normalised
copy of it.
"""

import hashlib
import math
from argparse import ArgumentParser
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor

from icefall_kd.core.cli import positive_float
from icefall_kd.core.files import Pathlike, read_text
from icefall_kd.data.tokens import WORD_START, Tokenizer

Phrase = tuple[Sequence[int], float]  # its tokens, and the bonus of each of them


@dataclass
class _State:
    """How far a hypothesis has come in a phrase.

    Attributes:
      bonus: of the token that leads here.
      earned: by all tokens from the start of the phrase on.
      ends: whether a phrase is complete here.
      fail: the state of the longest proper suffix that also begins a phrase.
    """

    bonus: float = 0.0
    earned: float = 0.0
    ends: bool = False
    number: int = 0
    next: dict[int, "_State"] = field(default_factory=dict)
    fail: Optional["_State"] = None


@dataclass(frozen=True, eq=False)
class Hotwords:
    """The automaton as tables, for a batch of hypotheses at once.

    Attributes:
      next: (S, V) int64, the state after a token; 0 is the start.
      gain: (S, V) float32, what the token adds to the score.
      unfinished: (S,) float32, what a phrase that goes no further has earned in vain.
      path: of the file that they were read from.
      text: of a file with the same phrases, normalised, for sherpa-onnx.
      score: bonus of a token of a phrase without one of its own.
      sha256: of the phrases' tokens and bonuses.
    """

    next: Tensor
    gain: Tensor
    unfinished: Tensor
    path: Optional[Path] = None
    text: str = ""
    score: float = 0.0
    sha256: str = ""

    def to(self, device: torch.device) -> "Hotwords":
        """Return the same with its tables on a device."""
        return replace(
            self,
            next=self.next.to(device),
            gain=self.gain.to(device),
            unfinished=self.unfinished.to(device),
        )


def build_hotwords(phrases: Iterable[Phrase], vocab_size: int) -> Hotwords:
    """Return the automaton of ``phrases``, in their order.

    Where two phrases share their first tokens, each of these earns the larger bonus.

    Raises:
      ValueError: if there is no phrase, one is empty, or a bonus is not positive.
    """
    phrases = [(list(tokens), float(bonus)) for tokens, bonus in phrases]
    if not phrases or not all(tokens and bonus > 0 for tokens, bonus in phrases):
        raise ValueError("no hotwords, or one without tokens or a positive bonus")
    states = _link(_grow(phrases))
    earned = torch.tensor([state.earned for state in states])
    shape = (len(states), vocab_size)
    follow = torch.zeros(shape, dtype=torch.int64)
    worth = torch.zeros(shape)  # what is earned in all after a token
    for n, state in enumerate(states):
        if state.fail is not None:  # which stands before it in the list
            follow[n], worth[n] = follow[state.fail.number], worth[state.fail.number]
        for token, reached in state.next.items():
            end = _end(reached)
            follow[n, token] = reached.number if end is None else 0
            worth[n, token] = (end or reached).earned
    gain = worth - earned[:, None]
    for n, state in enumerate(states):
        for token, reached in state.next.items():
            # Not 0 where a later phrase raised the bonuses on the way to this state.
            gain[n, token] += reached.bonus - (reached.earned - state.earned)
    digest = hashlib.sha256(repr(phrases).encode()).hexdigest()
    return Hotwords(follow, gain, earned, sha256=digest)


def _grow(phrases: Sequence[tuple[list[int], float]]) -> _State:
    """Return the start of a tree of phrases."""
    start = _State()
    for tokens, bonus in phrases:
        state = start
        for token in tokens:
            reached = state.next.setdefault(token, _State(bonus))
            reached.bonus = max(bonus, reached.bonus)
            reached.earned = state.earned + reached.bonus
            state = reached
        state.ends = True
    return start


def _link(start: _State) -> list[_State]:
    """Find every state's suffix; return the states, the shorter phrases first."""
    states: list[_State] = []
    waiting: deque[_State] = deque([start])
    while waiting:
        state = waiting.popleft()
        state.number = len(states)
        states.append(state)
        for token, reached in state.next.items():
            suffix = state.fail
            while suffix is not None and token not in suffix.next:
                suffix = suffix.fail
            reached.fail = start if suffix is None else suffix.next[token]
            waiting.append(reached)
    return states


def _end(state: _State) -> Optional[_State]:
    """Return the state of the longest phrase that is complete here, None if none is."""
    end: Optional[_State] = state
    while end is not None and not end.ends:
        end = end.fail
    return end


def read_hotwords(path: Pathlike, tokenizer: Tokenizer, score: float) -> Hotwords:
    """Read phrases from a file, one a line, in the letters of the transcripts.

    A line may end in a bonus of its own for each token, written ":2.5".  A line with a
    "▁" is written in BPE pieces, which are joined: "▁P RE S S" is "PRESS".

    Args:
      score: bonus of a token where the line has none.
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is not UTF-8 text, there is no phrase in it, a bonus is
        not a number or not the last of its line, or a phrase needs letters that the
        tokens do not have; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of hotwords")
    phrases = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        try:
            phrase = _read_line(line, tokenizer, score)
        except ValueError as e:
            raise ValueError(f"{path}: line {number}: {e}") from e
        if phrase is not None:
            phrases.append(phrase)
    if not phrases:
        raise ValueError(f"{path}: holds no hotwords")
    hotwords = build_hotwords(phrases, tokenizer.vocab_size)
    text = "".join(f"{tokenizer.decode(ids)} :{bonus}\n" for ids, bonus in phrases)
    return replace(hotwords, path=path, text=text, score=score)


def _read_line(line: str, tokenizer: Tokenizer, score: float) -> Optional[Phrase]:
    words = line.split()
    if words and words[-1].startswith(":"):
        score = _bonus(words.pop())
    if not words:
        return None
    if any(WORD_START in word for word in words):
        words = "".join(words).replace(WORD_START, " ").split()
    # A word at a time, as sherpa-onnx cuts them.
    tokens = [token for word in words for token in tokenizer.encode(word)]
    read = tokenizer.decode(tokens).split()  # as sherpa-onnx reads the copy
    if any(word.startswith(":") for word in (*words, *read)):
        raise ValueError("the bonus, :NUMBER, stands at the end, once")
    if not tokens:  # invisible characters alone
        return None
    if tokenizer.unk_id in tokens:
        raise ValueError(
            f"'{' '.join(words)}' has letters that the tokens do not have; write it as "
            "the transcripts are written"
        )
    return tokens, score


def _bonus(text: str) -> float:
    try:
        bonus = float(text[1:])
    except ValueError:
        bonus = 0.0
    if not 0 < bonus < math.inf:
        raise ValueError(f"'{text}' is no positive bonus, such as :2.5")
    return bonus


def add_hotwords(parser: ArgumentParser) -> None:
    """Add the options --hotwords and --hotwords-score to a command."""
    parser.add_argument("--hotwords", type=Path, help="file, a phrase on each line")
    parser.add_argument(
        "--hotwords-score",
        type=positive_float,
        default=1.5,
        help="bonus in nats of each token of a hotword that has none of its own",
    )
