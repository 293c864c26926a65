"""Transcripts as words, in English and other languages."""

from pathlib import Path

import pytest

from icefall_kd.data.normalise import (
    LANGUAGES,
    NORMALISED,
    normalise_english,
    normalise_text,
)
from icefall_kd.data.numbers import spell_number

SPOKEN = Path(__file__).with_name("spoken_numbers.tsv")


@pytest.mark.parametrize(
    "number, spoken",
    [
        ("0", "ZERO"),
        ("7", "SEVEN"),
        ("10", "TEN"),
        ("21", "TWENTY ONE"),
        ("007", "ZERO ZERO SEVEN"),
        ("500", "FIVE ZERO ZERO"),
        ("1234", "ONE TWO THREE FOUR"),
        ("28.8", "TWENTY EIGHT POINT EIGHT"),
        ("1,000", "ONE ZERO ZERO ZERO"),
        ("1ST", "FIRST"),
        ("22ND", "TWENTY SECOND"),
        ("40TH", "FORTIETH"),
    ],
)
def test_numbers_are_spelled_as_telephone_prompts_read_them(number, spoken):
    assert spell_number(number) == spoken


@pytest.mark.parametrize(
    "text, spoken",
    [
        ("Press 1, then #.", "PRESS ONE THEN POUND"),
        ("separated by * and", "SEPARATED BY STAR AND"),
        ("[ascending tones]", ""),
        ("(2 seconds of silence) Go.", "GO"),
        ("<beep>", ""),
        ("A.M.", "A M"),
        ("It's 3 P.M. now.", "IT'S THREE P M NOW"),
        ("Mr. Smith vs. Dr. Jones, etc.", "MISTER SMITH VERSUS DOCTOR JONES ET CETERA"),
        ("visit www.asterisk.org.", "VISIT WWW DOT ASTERISK DOT ORG"),
        ("H.323", "H THREE TWENTY THREE"),
        ("3D audio", "THREE D AUDIO"),
        ("the 3rd call", "THE THIRD CALL"),
        ("re-enter, de-activated", "REENTER DEACTIVATED"),
        ("full-featured", "FULL FEATURED"),
        ("don’t say 'no'", "DON'T SAY NO"),
        ("o'clock", "O'CLOCK"),
        ("...  ", ""),
        ("", ""),
    ],
)
def test_english_text_becomes_spoken_words(text, spoken):
    assert normalise_english(text) == spoken
    assert NORMALISED.match(spoken)
    assert normalise_english(spoken) == spoken


def test_english_numbers_are_written_as_in_running_speech():
    lines = SPOKEN.read_text(encoding="utf-8").splitlines()
    assert len(lines) > 60
    for line in lines:
        text, spoken = line.split("\t")
        assert normalise_english(text) == spoken, text
        assert normalise_english(spoken) == spoken, text


@pytest.mark.parametrize(
    "text, spoken",
    [
        ("1842", "ONE EIGHT FOUR TWO"),
        ("dial 300, then #", "DIAL THREE ZERO ZERO THEN POUND"),
        ("H.323", "H THREE TWO THREE"),
        ("the 3rd of 12", "THE THIRD OF TWELVE"),
    ],
)
def test_style_digits_writes_numbers_digit_by_digit(text, spoken):
    assert normalise_english(text, numbers="digits") == spoken


def test_any_sequence_of_digits_and_signs_becomes_words():
    """Numbers of any length, broken in any way."""
    pieces = ["9" * 40, "1,", "00", "/0", "-", "$", ":", ".5", "3", "TH", "°", "²", "¾"]
    for first in pieces:
        for second in pieces:
            for third in pieces:
                text = first + second + third
                assert NORMALISED.match(normalise_english(text)), text


@pytest.mark.parametrize(
    "language, text, lower",
    [
        (
            "de",
            "1842 hatten 300 Mann 1.000 Mark, also 2,5 %.",
            "achtzehnhundertzweiundvierzig hatten dreihundert mann eintausend mark "
            "also zwei komma fünf prozent",
        ),
        (
            "fr",
            "En 1842, 1\u202f000 hommes à 8h30",
            "en mille huit cent quarante deux mille hommes à huit h trente",
        ),
        (
            "es",
            "21 casas en 1999",
            "veintiuno casas en mil novecientos noventa y nueve",
        ),
        ("it", "Nel 1842", "nel milleottocentoquarantadue"),
        ("nl", "In 1842", "in achttien honderd tweeënveertig"),
        ("ru", "300 человек, 2,5", "триста человек две целых пять десятых"),
        ("cs", "bylo 42", "bylo čtyřicet dva"),
        ("tr", "2,5 ve 007", "iki beş ve sıfır sıfır yedi"),
        ("ja", "3時に1000人", "三時に千人"),
    ],
)
def test_numbers_of_other_languages_become_words(language, text, lower):
    assert normalise_text(text, language, "lower") == lower


def test_each_language_writes_integers_and_decimals():
    for language in LANGUAGES:
        for numbers in ("spoken", "digits"):
            written = normalise_text(
                f"7 1.842,5 {10**12} 007", language, numbers=numbers
            )
            assert written and not any(c.isdecimal() for c in written), language


def test_style_that_a_language_lacks_is_refused():
    assert normalise_text("τα 300", "el", "lower", numbers="keep") == "τα 300"
    for numbers in ("spoken", "digits"):
        with pytest.raises(ValueError, match="--language el: .*--numbers keep.* cs, "):
            normalise_text("", "el", numbers=numbers)
    with pytest.raises(ValueError, match="--numbers keep: English"):
        normalise_text("", "en", numbers="keep")
    with pytest.raises(ValueError, match="--numbers words: choose one of spoken, dig"):
        normalise_text("", "fr", numbers="words")


def test_words_of_the_corpus_are_replaced():
    assert (
        normalise_english("the PBX, no PBXs", {"PBX": "P B X"}) == "THE P B X NO PBXS"
    )


@pytest.mark.parametrize(
    "language, text, upper",
    [
        ("fr", "L'été à la plage.", "L'ÉTÉ À LA PLAGE"),
        (
            "fr",
            "« Aujourd’hui », dit-il ; [rires] à 8 h 30 !",
            "AUJOURD'HUI DIT IL À 8 H 30",
        ),
        ("fr", "l'e\u0301te\u0301 'dit'", "L'ÉTÉ DIT"),  # marks of their own: NFC
        ("de", "Die Straße (Applaus) heißt „Ölweg“.", "DIE STRASSE HEISST ÖLWEG"),
        ("uk", "П’ять яблук — це м'ята?", "П'ЯТЬ ЯБЛУК ЦЕ М'ЯТА"),
        ("el", "Γειά σας!", "ΓΕΙΆ ΣΑΣ"),
        ("tr", "Iğdır'da iyi, ılık", "IĞDIR'DA İYİ ILIK"),
        ("hi", "नमस्ते, दुनिया। \u2764\ufe0f", "नमस्ते दुनिया"),
        ("fa", "می\u200cخواهم؟", "می\u200cخواهم"),
        ("zh", "今天天气很好。", "今天天气很好"),
        (
            "sv",
            "1\ufe0f\u20e3 co\u00adop_ \U0001f469\u200d\U0001f52c ♪ 50 %",
            "1 COOP 50",
        ),
        ("fr", "... [musique] ''", ""),
    ],
)
def test_other_languages_keep_their_letters(language, text, upper):
    keep = {"numbers": "keep"}
    assert normalise_text(text, language, **keep) == upper
    assert normalise_text(upper, language, **keep) == upper
    lower = normalise_text(text, language, "lower", **keep)
    assert lower == normalise_text(lower, language, "lower", **keep)
    assert normalise_text(lower, language, "upper", **keep) == upper


@pytest.mark.parametrize(
    "language, text, lower",
    [
        ("fr", "L'ÉTÉ À LA PLAGE.", "l'été à la plage"),
        ("de", "Straße", "straße"),
        ("tr", "IĞDIR'DA İYİ", "ığdır'da iyi"),
        ("el", "ΓΕΙΑ ΣΑΣ", "γεια σας"),
        ("en", "It's 3 P.M. [beep]", "it's three p m"),
    ],
)
def test_lower_case_follows_the_language(language, text, lower):
    numbers = "spoken" if language == "en" else "keep"
    assert normalise_text(text, language, "lower", numbers) == lower


def test_english_in_upper_case_is_the_default():
    for text in ("Press 1, then #.", "don’t say 'no'", "L'été à la plage"):
        assert (
            normalise_text(text)
            == normalise_text(text, "en", "upper")
            == normalise_english(text)
        )


def test_unknown_case_is_refused():
    with pytest.raises(
        ValueError, match="--case title: unknown. Available: upper, lower"
    ):
        normalise_text("a", case="title")
