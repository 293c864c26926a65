"""Letters of transcripts that a BPE model cannot write: counted, named, refused."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any, Callable

from icefall_kd.data.normalise import INSIDE
from icefall_kd.data.tokens import Tokenizer

MAX_UNKNOWN = 0.01  # share of a set's tokens that may be <unk>
SHOWN = 20  # letters in a message
REMEDY = (
    "write the texts with the letters of the BPE model (numbers as words, ’ as '), or "
    "train it on texts that have these letters, with icefall_kd.bin.train_bpe"
)


class UnknownLetters:
    """Counts the tokens ``<unk>`` of a set and the letters behind them.

    Attributes:
      tokens, unknown: number of tokens, and of those that are ``<unk>``.
      letters: letter -> how often it is in the texts with an ``<unk>``; only those that
        the BPE model does not know.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens = self.unknown = 0
        self.letters: Counter = Counter()
        self._tokenizer = tokenizer
        self._known: dict[str, bool] = {}

    def add(self, text: str) -> list[int]:
        """Count one text; return its tokens."""
        tokens = self._tokenizer.encode(text)
        self.tokens += len(tokens)
        unknown = tokens.count(self._tokenizer.unk_id)
        if unknown:
            self.unknown += unknown
            composed = unicodedata.normalize("NFC", text)  # as sentencepiece does
            self.letters.update(c for c in composed if not self._is_known(c))
        return tokens

    def _is_known(self, letter: str) -> bool:
        if letter not in self._known:
            tokens = self._tokenizer.encode(letter)
            self._known[letter] = self._tokenizer.unk_id not in tokens
        return self._known[letter]

    def share(self) -> float:
        """Return the share of ``<unk>`` among the tokens."""
        return self.unknown / max(1, self.tokens)

    def counts(self) -> dict[str, Any]:
        """Return the counts for a JSON file."""
        return {
            "tokens": self.tokens,
            "unk": self.unknown,
            "letters": dict(self.letters.most_common()),
        }

    def describe(self) -> str:
        """Return the share, the letters and their counts, and a difference in case."""
        letters = ", ".join(
            f"{letter} (U+{ord(letter):04X}) {count}"
            for letter, count in self.letters.most_common(SHOWN)
        )
        more = len(self.letters) - SHOWN
        line = f"{self.unknown} of {self.tokens} tokens ({self.share():.2%}) are <unk>"
        line += f", for the letters {letters}"
        line += f" and {more} more letters" if more > 0 else ""
        total = sum(self.letters.values())
        for change, difference in _CASES.items():
            other = {c: change(c) for c in self.letters}
            explained = sum(self.letters[c] for c in other if self._is_known(other[c]))
            if 2 * explained > total:
                line += f": {difference}"
        return line

    def check(
        self, name: str, option: str = "", max_unknown: float = MAX_UNKNOWN
    ) -> None:
        """Log the letters that are unknown, if any.

        Args:
          name: of the set.
          option: that sets ``max_unknown``.
          max_unknown: share of the tokens that may be ``<unk>``.
        Raises:
          ValueError: if there are more; the message names the letters.
        """
        if self.share() > max_unknown:
            raise ValueError(
                f"{name}: {self.describe()}; more than {max_unknown:.2%}. Remedy: "
                f"{REMEDY}, or allow more with {option}"
            )
        if self.unknown:
            logging.warning("%s: %s. Remedy: %s", name, self.describe(), REMEDY)


_CASES: dict[Callable[[str], str], str] = {
    str.upper: "texts are lower case, tokens upper case",
    str.lower: "texts are upper case, tokens lower case",
}


def case_difference(
    text: str, tokenize: Callable[[str], list[int]], unk_id: int
) -> str:
    """Return how the cases of a text and of the tokens differ, "" if they do not."""
    for change, difference in _CASES.items():
        if unk_id not in tokenize(change(text)):
            return difference
    return ""


def count_signs(texts: Iterable[str]) -> Counter:
    """Return how often digits and signs, which nobody pronounces, are in texts."""
    return Counter(
        c
        for text in texts
        for c in text
        if not (c.isspace() or c in INSIDE or unicodedata.category(c)[0] in "LM")
    )
