"""BPE tokens by sentencepiece, and a check for letters that a BPE model lacks."""

import hashlib
import io
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Callable

import sentencepiece

from icefall_kd import BLANK_ID
from icefall_kd.core.files import Pathlike, write_atomically, write_text
from icefall_kd.data.normalise import INSIDE

BLANK, SOS_EOS, UNK = "<blk>", "<sos/eos>", "<unk>"  # ids 0, 1, 2, as in icefall
UNK_ID = 2
WORD_START = "\u2581"  # sentencepiece's symbol for the space before a word

MAX_UNKNOWN = 0.01  # share of a set's tokens that may be <unk>
MAX_SHOWN = 20  # letters in a message
REMEDY = (
    "write the texts with the letters of the BPE model (numbers as words, ’ as '), or "
    "train another on texts with these letters (icefall_kd.bin.train_bpe)"
)
# Change that makes unknown letters known -> description of the difference.
_CASES: dict[Callable[[str], str], str] = {
    str.upper: "texts are lower case, tokens upper case",
    str.lower: "texts are upper case, tokens lower case",
}


def train_bpe(texts: Sequence[str], vocab_size: int) -> bytes:
    """Return a serialised sentencepiece unigram model; training is deterministic.

    Args:
      vocab_size: number of pieces, the three special symbols included.
    Raises:
      ValueError: if ``vocab_size`` is too large for the texts, or too small for their
        letters.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram",
            character_coverage=1.0,
            input_sentence_size=100_000_000,
            user_defined_symbols=[BLANK, SOS_EOS],
            unk_id=UNK_ID,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,  # more threads would sum in another order
            minloglevel=2,
        )
    except (RuntimeError, OSError) as e:
        raise ValueError(
            f"cannot train {vocab_size} pieces on {len(texts)} texts; choose a smaller "
            f"--vocab-size or give more text ({e})"
        ) from e
    return model.getvalue()


def word_spans(pieces: Iterable[str]) -> list[tuple[int, int]]:
    """Return the positions of the first and the last piece of each word.

    A word starts at a piece with :data:`WORD_START`.  A piece that is only a space
    belongs to a word directly after it.
    """
    spans: list[tuple[int, int]] = []
    first, empty = 0, True
    for position, piece in enumerate(pieces):
        if piece.startswith(WORD_START):
            first, empty = position, True
        if empty and piece.strip(WORD_START):
            spans.append((first, position))
            empty = False
        elif not empty:
            spans[-1] = (first, position)
    return spans


class Tokenizer:
    """Convert text to token ids and back with a sentencepiece model.

    Attributes:
      vocab_size: number of tokens, blank included.
      blank_id: id of ``<blk>``, 0.
      unk_id: id of ``<unk>``.
      model_bytes: serialised model, stored in checkpoints.
      sha256: SHA-256 of ``model_bytes``, hexadecimal.
    """

    def __init__(self, model: Pathlike) -> None:
        """Read ``bpe.model``.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if it is not a sentencepiece model, or token 0 is not ``<blk>``.
        """
        path = Path(model)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such BPE model; write it with train_bpe"
            )
        self._load(path.read_bytes(), str(path))

    @classmethod
    def from_bytes(cls, model_bytes: bytes) -> "Tokenizer":
        """Return the tokenizer of a serialised model.

        Raises:
          ValueError: as the constructor.
        """
        tokenizer = cls.__new__(cls)
        tokenizer._load(model_bytes, "the BPE model")
        return tokenizer

    def _load(self, model_bytes: bytes, name: str) -> None:
        self.model_bytes = model_bytes
        self.sha256 = hashlib.sha256(model_bytes).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model_bytes)
        except RuntimeError as e:
            raise ValueError(
                f"{name}: not a sentencepiece model; write it with train_bpe"
            ) from e
        if self._processor.id_to_piece(BLANK_ID) != BLANK:
            raise ValueError(
                f"{name}: token {BLANK_ID} is {self._processor.id_to_piece(BLANK_ID)}, "
                f"not {BLANK}; write the model with train_bpe"
            )
        self.blank_id = BLANK_ID
        self.unk_id = self._processor.unk_id()
        self.vocab_size = self._processor.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Return the token ids of ``text``."""
        return self._processor.encode(text, out_type=int)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``; ``<unk>`` becomes sentencepiece's ⁇."""
        return self._processor.decode([int(i) for i in ids])

    def word_spans(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Return the positions of the first and the last token of each word.

        The words equal ``decode(ids).split()`` if no token is ``<unk>``.
        """
        return word_spans(map(self.piece, ids))

    def piece(self, id: int) -> str:
        """Return the symbol of an id, as in ``tokens.txt``."""
        return self._processor.id_to_piece(id)

    def score(self, id: int) -> float:
        """Return the unigram log-probability of an id."""
        return self._processor.get_score(id)

    def __reduce__(self):  # for loader workers; the processor cannot be pickled
        return Tokenizer.from_bytes, (self.model_bytes,)


def write_lang(model_bytes: bytes, directory: Path) -> Tokenizer:
    """Write ``bpe.model``, ``bpe.vocab`` and ``tokens.txt`` into ``directory``.

    sherpa-onnx reads ``tokens.txt``, with lines ``symbol id``, and ``bpe.vocab``, with
    lines ``piece<TAB>score``.
    """
    tokenizer = Tokenizer.from_bytes(model_bytes)
    ids = range(tokenizer.vocab_size)
    write_text(
        directory / "tokens.txt", "".join(f"{tokenizer.piece(i)} {i}\n" for i in ids)
    )
    write_text(
        directory / "bpe.vocab",
        "".join(f"{tokenizer.piece(i)}\t{tokenizer.score(i):g}\n" for i in ids),
    )
    with write_atomically(directory / "bpe.model") as temporary:
        temporary.write_bytes(model_bytes)
    return tokenizer


class UnknownLetters:
    """Count the ``<unk>`` tokens of a set and the letters that cause them.

    Attributes:
      tokens, unknown: number of tokens and of ``<unk>`` tokens.
      letters: letter that the BPE model lacks -> number of occurrences.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens = self.unknown = 0
        self.letters: Counter = Counter()
        self._tokenizer = tokenizer
        self._known: dict[str, bool] = {}

    def add(self, text: str) -> list[int]:
        """Count a text and return its token ids."""
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
        """Return the share of ``<unk>`` among the tokens, 0 to 1."""
        return self.unknown / max(1, self.tokens)

    def counts(self) -> dict[str, Any]:
        """Return the counts as they are stored in the gate's report."""
        return {
            "tokens": self.tokens,
            "unk": self.unknown,
            "letters": dict(self.letters.most_common()),
        }

    def describe(self) -> str:
        """Return one line with the share, the letters and a difference in case."""
        letters = ", ".join(
            f"{letter} (U+{ord(letter):04X}) {count}"
            for letter, count in self.letters.most_common(MAX_SHOWN)
        )
        more = len(self.letters) - MAX_SHOWN
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
        """Log the unknown letters, or raise an error if there are too many.

        Args:
          name: name of the set, for messages.
          option: name of the option for ``max_unknown``, for messages.
          max_unknown: maximum share of ``<unk>`` among the tokens.
        Raises:
          ValueError: if the share is larger.
        """
        if self.share() > max_unknown:
            raise ValueError(
                f"{name}: {self.describe()}; more than {max_unknown:.2%}. Remedy: "
                f"{REMEDY}, or allow more with {option}"
            )
        if self.unknown:
            logging.warning("%s: %s. Remedy: %s", name, self.describe(), REMEDY)


def describe_case_difference(
    text: str, tokenize: Callable[[str], list[int]], unk_id: int
) -> str:
    """Return how the cases of a text and of the tokens differ, "" if they do not."""
    for change, difference in _CASES.items():
        if unk_id not in tokenize(change(text)):
            return difference
    return ""


def count_signs(texts: Iterable[str]) -> Counter:
    """Return the number of occurrences of each digit and sign, except apostrophes."""
    return Counter(
        c
        for text in texts
        for c in text
        if not (c.isspace() or c in INSIDE or unicodedata.category(c)[0] in "LM")
    )
