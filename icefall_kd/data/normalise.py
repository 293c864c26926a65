"""English transcripts as they are spoken: upper-case words and apostrophes."""

import re
from typing import Mapping, Optional

from num2words import num2words

NORMALISED = re.compile(r"(?:[A-Z']+(?: [A-Z']+)*)?\Z")

# Notes that nobody says: [ascending tones], (2 seconds of silence), <beep>.
_NOTES = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>")
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:ST|ND|RD|TH)?")
_LETTER_DOT = re.compile(r"\b(?:[A-Z]\.){2,}")  # A.M. U.S.A.
_DOT_INSIDE = re.compile(r"(?<=[A-Z])\.(?=[A-Z])")  # www.asterisk.org
_DOT_BEFORE_NUMBER = re.compile(r"(?<=[A-Z])\.(?=\d)")  # H.323
_PREFIX = re.compile(r"\b(RE|DE|UN)-(?=[A-Z])")  # re-enter is one word

SYMBOLS = {
    "#": "POUND",
    "*": "STAR",
    "&": "AND",
    "%": "PERCENT",
    "@": "AT",
    "+": "PLUS",
    "=": "EQUALS",
}
ABBREVIATIONS = {
    "MR": "MISTER",
    "MRS": "MISSUS",
    "DR": "DOCTOR",
    "ST": "SAINT",
    "VS": "VERSUS",
    "ETC": "ET CETERA",
}


def spell_number(number: str) -> str:
    """Return a number as it is read over the telephone, in upper-case words.

    One or two digits are read as a number, longer ones digit by digit, as extensions
    and passwords are; "28.8" as "twenty eight point eight"; "3rd" as an ordinal.

    >>> spell_number("28.8"), spell_number("1234"), spell_number("3RD")
    ('TWENTY EIGHT POINT EIGHT', 'ONE TWO THREE FOUR', 'THIRD')

    Args:
      number: digits, with commas between thousands, at most one point, and an
        upper-case ordinal ending if any.
    """
    number = number.replace(",", "")
    ordinal = re.fullmatch(r"(\d+)(?:ST|ND|RD|TH)", number)
    if ordinal:
        return _words(num2words(int(ordinal[1]), to="ordinal"))
    whole, _, fraction = number.partition(".")
    if fraction or (len(whole) <= 2 and not whole.startswith("0")) or whole == "0":
        spoken = [_words(num2words(int(whole)))]
    else:
        spoken = [_words(num2words(int(digit))) for digit in whole]
    if fraction:
        spoken += ["POINT"] + [_words(num2words(int(digit))) for digit in fraction]
    return " ".join(spoken)


def _words(text: str) -> str:
    return re.sub(r"[^A-Z]+", " ", text.upper()).strip()


def normalise(text: str, words: Optional[Mapping[str, str]] = None) -> str:
    """Return ``text`` as upper-case words, one space between two of them.

    Notes in brackets are dropped, numbers and the symbols of a telephone keypad are
    written as words, letters of an abbreviation stand alone, every other punctuation
    is removed.  An already normalised text stays as it is.

    >>> normalise("Press 1, then #.  It's 3 P.M. [beep]")
    "PRESS ONE THEN POUND IT'S THREE P M"

    Args:
      text: English.
      words: what a corpus spells in its own way, upper-case word -> upper-case
        words: {"PBX": "P B X"}.
    Returns:
      a string that matches :data:`NORMALISED`; empty when nothing is said.
    """
    text = _NOTES.sub(" ", text).upper().replace("’", "'").replace("‘", "'")
    text = _LETTER_DOT.sub(lambda m: " ".join(m[0].replace(".", " ").split()), text)
    text = _DOT_INSIDE.sub(" DOT ", text)
    text = _DOT_BEFORE_NUMBER.sub(" ", text)
    text = _NUMBER.sub(lambda m: f" {spell_number(m[0])} ", text)
    text = _PREFIX.sub(r"\1", text)
    for symbol, spoken in SYMBOLS.items():
        text = text.replace(symbol, f" {spoken} ")
    text = re.sub(r"[^A-Z']+", " ", text)
    known = {**ABBREVIATIONS, **(words or {})}
    spoken = (known.get(word, word) for word in (w.strip("'") for w in text.split()))
    return " ".join(word for word in spoken if word)
