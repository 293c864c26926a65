"""Normalise transcripts to words and apostrophes in one case.

:func:`normalise_english` also writes English numbers and symbols as words;
:func:`normalise_text` handles any language.  Styles of numbers: "spoken" as in running
speech (1842: EIGHTEEN FORTY TWO), "digits" as in telephone prompts (ONE EIGHT FOUR
TWO), and, except in English, "keep" (1842).
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

_NOTES = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>")  # [music], (2 seconds of silence)
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:ST|ND|RD|TH)?")
_INITIALS = re.compile(r"\b(?:[A-Z]\.){2,}")  # A.M. U.S.A.
_DOT_INSIDE = re.compile(r"(?<=[A-Z])\.(?=[A-Z])")  # www.asterisk.org
_DOT_BEFORE_NUMBER = re.compile(r"(?<=[A-Z])\.(?=\d)")  # H.323
_PREFIX = re.compile(r"\b(RE|DE|UN)-(?=[A-Z])")  # re-enter is one word

# Signs inside words: the apostrophe, and the zero-width (non-)joiner that Persian and
# the languages of India are spelled with.
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
    """Return a number in upper-case words, as telephone prompts read it.

    Up to two digits are a cardinal, longer numbers are read digit by digit.

    >>> spell_number("28.8"), spell_number("1234"), spell_number("3RD")
    ('TWENTY EIGHT POINT EIGHT', 'ONE TWO THREE FOUR', 'THIRD')

    Args:
      number: digits with optional thousands commas, one decimal point, and an
        upper-case ordinal ending.
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


def normalise_english(
    text: str, words: Optional[Mapping[str, str]] = None, numbers: str = "spoken"
) -> str:
    """Return English ``text`` as upper-case words, separated by single spaces.

    Removes notes in brackets and punctuation, writes numbers and keypad symbols as
    words, and separates the letters of abbreviations.  Idempotent.

    >>> normalise_english("Press 1, then #.  It's 3 P.M. [beep]")
    "PRESS ONE THEN POUND IT'S THREE P M"

    Args:
      words: replacements of a corpus, upper-case word -> upper-case words, for example
        {"PBX": "P B X"}.
      numbers: "spoken" or "digits".
    Returns:
      a string that matches :data:`NORMALISED`; empty if no words remain.
    Raises:
      ValueError: if ``numbers`` is another style.
    """
    check_style("en", numbers)
    text = text.upper().replace("’", "'").replace("‘", "'")
    if numbers == "spoken":
        text = write_english(text)  # before _NOTES, which would remove area codes
    text = _NOTES.sub(" ", text)
    text = _INITIALS.sub(lambda m: " ".join(m[0].replace(".", " ").split()), text)
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


def normalise_text(
    text: str, language: str = "en", case: str = "upper", numbers: str = "spoken"
) -> str:
    """Return ``text`` as words of its language, separated by single spaces.

    English uses :func:`normalise_english`.  Other languages keep their letters and
    marks (NFC) and apostrophes inside words; notes in brackets and other signs are
    removed.

    >>> normalise_text("L’été [rires], à 8 h !", "fr", "lower")
    "l'été à huit h"

    Args:
      language: Whisper's language code.
      case:     "upper" or "lower".
      numbers:  "spoken", "digits" or "keep".
    Raises:
      ValueError: if ``case`` or ``numbers`` is invalid for the language.
    """
    if case not in CASES:
        raise ValueError(f"--case {case}: unknown. Available: {', '.join(CASES)}")
    check_style(language, numbers)
    if language == "en":
        spoken = normalise_english(text, numbers=numbers)
        return spoken.lower() if case == "lower" else spoken
    text = _NOTES.sub(" ", unicodedata.normalize("NFC", text))
    if numbers != "keep":
        text = write_other(text, language, numbers)
    text = _remove_signs(text.replace("’", "'").replace("‘", "'"))
    words = (word.strip(INSIDE) for word in text.split())
    text = " ".join(word for word in words if word)
    # Changing case may decompose a letter.
    return unicodedata.normalize("NFC", _change_case(text, language, case))


def _remove_signs(text: str) -> str:
    """Return ``text`` with a space for every character that is not part of a word."""
    kept = [" "]
    for char in text:
        kind = unicodedata.category(char)
        if kind[0] in "LN" or char in INSIDE:
            kept.append(char)
        elif kind[0] == "M":
            # A mark belongs to a letter; otherwise it is the variant of an emoji.
            if unicodedata.category(kept[-1])[0] in "LM":
                kept.append(char)
        elif kind != "Cf":  # soft hyphens and direction marks do not separate words
            kept.append(" ")
    return "".join(kept)


def _change_case(text: str, language: str, case: str) -> str:
    if case == "upper":
        return (text.replace("i", "İ") if language in _DOTTED_I else text).upper()
    if language in _DOTTED_I:
        text = text.replace("İ", "i").replace("I", "ı")
    return text.lower()
