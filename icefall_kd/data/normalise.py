"""Normalise transcripts to words and apostrophes in one case.

:func:`normalise_english` is for English, and :func:`normalise_text` for any language.
Both write numbers as words.  The styles of numbers are

- "spoken", as in running speech: 1842 becomes EIGHTEEN FORTY TWO;
- "digits", as in telephone prompts: ONE EIGHT FOUR TWO;
- "keep", which leaves 1842; not for English.
"""

import contextlib
import re
import unicodedata
from collections.abc import Mapping
from typing import Optional

from num2words import CONVERTER_CLASSES, num2words

from icefall_kd.data.numbers import MAX_DIGITS, spell_number, write_english_numbers

NORMALISED = re.compile(r"(?:[A-Z']+(?: [A-Z']+)*)?\Z")
CASES = ("upper", "lower")
STYLES = ("spoken", "digits", "keep")
# Language codes of num2words 0.5.  Its Amharic does not return for numbers > 1,000,000.
LANGUAGES = sorted(c for c in CONVERTER_CLASSES if "_" not in c and c != "am")

_NOTES = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>")  # [music], (2 seconds of silence)
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:ST|ND|RD|TH)?")
_INITIALS = re.compile(r"\b(?:[A-Z]\.){2,}")  # A.M. U.S.A.
_DOT_INSIDE = re.compile(r"(?<=[A-Z])\.(?=[A-Z])")  # www.asterisk.org
_DOT_BEFORE_NUMBER = re.compile(r"(?<=[A-Z])\.(?=\d)")  # H.323
_PREFIX = re.compile(r"\b(RE|DE|UN)-(?=[A-Z])")  # re-enter is one word

# Signs inside words: the apostrophe, and the zero-width (non-)joiner of Persian and of
# the languages of India.
INSIDE = "'\u200c\u200d"
_DOTTED_I = ("tr", "az")  # languages with the pairs i/İ and ı/I

# fmt: off
SYMBOLS = {
    "#": "POUND", "*": "STAR", "&": "AND", "%": "PERCENT", "@": "AT", "+": "PLUS",
    "=": "EQUALS",
}
ABBREVIATIONS = {
    "MR": "MISTER", "MRS": "MISSUS", "DR": "DOCTOR", "ST": "SAINT", "VS": "VERSUS",
    "ETC": "ET CETERA",
}

# Numbers in other languages, by num2words' language codes.
_DECIMAL_POINT = ("bn", "he", "hi", "ja", "kn", "ko", "te", "th", "zh")
_NO_DECIMALS = ("ar", "cy", "tr", "vi")  # num2words reads 2.5 as 2.50 or 2
_YEARS_BY_HUNDREDS = ("da", "de", "nl", "no", "sl")
_NO_SPACES = ("ja", "th", "zh")
_AS_NUM2WORDS = {"kk": "kz", "nb": "no", "nn": "no"}
# num2words raises these for numbers that it does not support in a language.
_GAPS = (AttributeError, KeyError, NotImplementedError, OverflowError, TypeError)
_PERCENT = {
    "cs": "procent", "da": "procent", "de": "Prozent", "es": "por ciento",
    "fi": "prosenttia", "fr": "pour cent", "it": "per cento", "nl": "procent",
    "no": "prosent", "pl": "procent", "pt": "por cento", "ru": "процентов",
    "sv": "procent", "uk": "відсотків",
}
# fmt: on


def check_style(language: str, numbers: str) -> None:
    """Raise an error if a language does not support a style of numbers.

    Args:
      language: Whisper's language code.
      numbers:  one of :data:`STYLES`.
    Raises:
      ValueError: if the style is unknown, if it is "keep" for English, or if num2words
        does not support the language.
    """
    if numbers not in STYLES:
        raise ValueError(f"--numbers {numbers}: choose one of {', '.join(STYLES)}")
    if numbers == "keep":
        if language == "en":
            raise ValueError(
                "--numbers keep: English texts have no digits; choose spoken or digits"
            )
    elif _AS_NUM2WORDS.get(language, language) not in LANGUAGES:
        raise ValueError(
            f"--language {language}: num2words does not support it; keep the digits "
            f"with --numbers keep. Supported: {', '.join(LANGUAGES)}"
        )


def normalise_english(
    text: str, words: Optional[Mapping[str, str]] = None, numbers: str = "spoken"
) -> str:
    """Return English ``text`` as upper-case words, separated by single spaces.

    Notes in brackets and punctuation are removed, numbers and keypad symbols become
    words, and the letters of abbreviations are separated.  A normalised text does not
    change.

    >>> normalise_english("Press 1, then #.  It's 3 P.M. [beep]")
    "PRESS ONE THEN POUND IT'S THREE P M"

    Args:
      words: upper-case word -> its replacement, in addition to :data:`ABBREVIATIONS`,
        for example {"PBX": "P B X"}.
      numbers: "spoken" or "digits".
    Returns:
      a string that matches :data:`NORMALISED`; "" if no words remain.
    Raises:
      ValueError: if ``numbers`` is another style.
    """
    check_style("en", numbers)
    text = text.upper().replace("’", "'").replace("‘", "'")
    if numbers == "spoken":
        # This is before the removal of notes, because area codes may be in brackets.
        text = write_english_numbers(text)
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

    English uses :func:`normalise_english`.  In other languages, letters, marks (NFC)
    and apostrophes inside words remain; notes in brackets and other signs are removed.

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
        text = _write_numbers(text, language, numbers)
    text = _remove_signs(text.replace("’", "'").replace("‘", "'"))
    words = (word.strip(INSIDE) for word in text.split())
    text = " ".join(word for word in words if word)
    # Changing case may decompose a letter.
    return unicodedata.normalize("NFC", _change_case(text, language, case))


def _write_numbers(text: str, language: str, numbers: str) -> str:
    """Return text of a language other than English with numbers as words.

    It supports cardinals, decimals, years that are read by hundreds, and the per cent
    sign of some languages, in num2words' default grammatical case and gender.

    Args:
      numbers: "spoken", or "digits" for one word for each digit.
    """
    code = _AS_NUM2WORDS.get(language, language)
    point, comma = (".", ",") if language in _DECIMAL_POINT else (",", ".")
    grouped = re.compile(rf"\d{{1,3}}([{comma}'’ \u00a0\u202f])\d{{3}}(\1\d{{3}})*")

    def convert(value: float, **options: str) -> str:
        return str(num2words(value, lang=code, **options))

    def write_digits(text: str) -> str:
        return " ".join(convert(int(d)) for d in text if d.isdecimal())

    def write_cardinal(digits: str) -> str:
        if len(digits) <= MAX_DIGITS and (digits[0] != "0" or len(digits) == 1):
            with contextlib.suppress(*_GAPS):
                return convert(int(digits))
        return write_digits(digits)

    def write_number(number: str) -> str:
        if numbers == "digits":
            return write_digits(number)
        if grouped.fullmatch(number):
            return write_cardinal(re.sub(r"\D", "", number))
        if code in _YEARS_BY_HUNDREDS and re.fullmatch(r"1[1-9]\d\d", number):
            return convert(int(number), to="year")
        integer, sign, fraction = number.partition(point)
        is_decimal = sign and integer.isdecimal() and fraction.isdecimal()
        if is_decimal and code not in _NO_DECIMALS:
            with contextlib.suppress(*_GAPS):
                return convert(float(f"{int(integer)}.{fraction}"))
        return " ".join(map(write_cardinal, re.findall(r"\d+", number)))

    pattern = r"\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?!\d)|\d+(?:[.,'’]\d+)*"
    gap = "" if language in _NO_SPACES else " "
    text = re.sub(pattern, lambda m: f"{gap}{write_number(m[0])}{gap}", text)
    return text.replace("%", f" {_PERCENT.get(code, '')} ")


def _remove_signs(text: str) -> str:
    """Return ``text`` with a space for every character that is not part of a word."""
    kept = [" "]
    for char in text:
        kind = unicodedata.category(char)
        if kind[0] in "LN" or char in INSIDE:
            kept.append(char)
        elif kind[0] == "M":
            # A mark after anything but a letter selects the variant of an emoji.
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
