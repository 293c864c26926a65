"""Transcripts as they are spoken: words and apostrophes, in one case.

English has its numbers and signs written out (:func:`normalise`).  Any other language
keeps its own letters (:func:`spell`).  How numbers are read is a property of a corpus:
"spoken" as in running speech (EIGHTEEN FORTY TWO), "digits" as telephone prompts read
extensions and passwords (ONE EIGHT FOUR TWO), or "keep", not in English, as digits.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Optional

from num2words import num2words

from icefall_kd.data.numbers import (
    check_style,
    read_digits,
    words_of,
    write_english,
    write_other,
)

NORMALISED = re.compile(r"(?:[A-Z']+(?: [A-Z']+)*)?\Z")
CASES = ("upper", "lower")

# Notes that nobody says: [ascending tones], (2 seconds of silence), <beep>.
_NOTES = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>")
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:ST|ND|RD|TH)?")
_LETTER_DOT = re.compile(r"\b(?:[A-Z]\.){2,}")  # A.M. U.S.A.
_DOTINSIDE = re.compile(r"(?<=[A-Z])\.(?=[A-Z])")  # www.asterisk.org
_DOT_BEFORE_NUMBER = re.compile(r"(?<=[A-Z])\.(?=\d)")  # H.323
_PREFIX = re.compile(r"\b(RE|DE|UN)-(?=[A-Z])")  # re-enter is one word

# What may be inside a word beside letters, marks and digits: the apostrophe, and two
# signs without width that the spelling of Persian and of India's languages needs.
INSIDE = "'\u200c\u200d"
_DOTTED_I = ("tr", "az")  # languages with the pairs i/İ and ı/I

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
        return words_of(num2words(int(ordinal[1]), to="ordinal"))
    whole, _, fraction = number.partition(".")
    if fraction or (len(whole) <= 2 and not whole.startswith("0")) or whole == "0":
        spoken = words_of(num2words(int(whole)))
    else:
        spoken = read_digits(whole)
    return f"{spoken} POINT {read_digits(fraction)}" if fraction else spoken


def normalise(
    text: str, words: Optional[Mapping[str, str]] = None, numbers: str = "spoken"
) -> str:
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
      numbers: "spoken" or "digits".
    Returns:
      a string that matches :data:`NORMALISED`; empty when nothing is said.
    Raises:
      ValueError: if English has no such style of numbers.
    """
    check_style("en", numbers)
    text = text.upper().replace("’", "'").replace("‘", "'")
    if numbers == "spoken":
        text = write_english(text)  # an area code is in brackets, as notes are
    text = _NOTES.sub(" ", text)
    text = _LETTER_DOT.sub(lambda m: " ".join(m[0].replace(".", " ").split()), text)
    text = _DOTINSIDE.sub(" DOT ", text)
    text = _DOT_BEFORE_NUMBER.sub(" ", text)
    text = _NUMBER.sub(lambda m: f" {spell_number(m[0])} ", text)
    text = _PREFIX.sub(r"\1", text)
    for symbol, spoken in SYMBOLS.items():
        text = text.replace(symbol, f" {spoken} ")
    text = re.sub(r"[^A-Z']+", " ", text)
    known = {**ABBREVIATIONS, **(words or {})}
    spoken = (known.get(word, word) for word in (w.strip("'") for w in text.split()))
    return " ".join(word for word in spoken if word)


def spell(
    text: str, language: str = "en", case: str = "upper", numbers: str = "spoken"
) -> str:
    """Return ``text`` as the words of its language, one space between two of them.

    English goes through :func:`normalise`.  Of another language the letters with their
    marks stay (NFC), and the apostrophes inside words; notes in brackets and all other
    signs are dropped.

    >>> spell("L’été [rires], à 8 h !", "fr", "lower")
    "l'été à huit h"

    Args:
      language: its code, as Whisper has it.
      case:     "upper" or "lower".
      numbers:  "spoken", "digits" or "keep".
    Raises:
      ValueError: if the case is neither, or the language has no such style of numbers.
    """
    if case not in CASES:
        raise ValueError(f"--case {case}: it can be {' or '.join(CASES)}")
    check_style(language, numbers)
    if language == "en":
        spoken = normalise(text, numbers=numbers)
        return spoken.lower() if case == "lower" else spoken
    text = _NOTES.sub(" ", unicodedata.normalize("NFC", text))
    if numbers != "keep":
        text = write_other(text, language, numbers)
    text = _keep_letters(text.replace("’", "'").replace("‘", "'"))
    words = (word.strip(INSIDE) for word in text.split())
    text = " ".join(word for word in words if word)
    # A letter of the other case may be two: NFC again.
    return unicodedata.normalize("NFC", _in_case(text, language, case))


def _keep_letters(text: str) -> str:
    """Return ``text`` with a space for every sign that is of no word."""
    kept = [" "]
    for char in text:
        kind = unicodedata.category(char)
        if kind[0] in "LN" or char in INSIDE:
            kept.append(char)
        elif kind[0] == "M":
            # On a letter; else it is what makes an emoji of the sign before it.
            if unicodedata.category(kept[-1])[0] in "LM":
                kept.append(char)
        elif kind != "Cf":  # a soft hyphen, or a mark of direction, parts no word
            kept.append(" ")
    return "".join(kept)


def _in_case(text: str, language: str, case: str) -> str:
    if case == "upper":
        return (text.replace("i", "İ") if language in _DOTTED_I else text).upper()
    if language in _DOTTED_I:
        text = text.replace("İ", "i").replace("I", "ı")
    return text.lower()
