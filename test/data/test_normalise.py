import pytest

from icefall_kd.data.normalise import NORMALISED, normalise, spell, spell_number


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
def test_numbers_are_read_as_over_the_telephone(number, spoken):
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
        ("H.323", "H THREE TWO THREE"),
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
def test_text_becomes_what_is_said(text, spoken):
    assert normalise(text) == spoken
    assert NORMALISED.match(spoken)
    assert normalise(spoken) == spoken


def test_words_of_the_corpus_are_replaced_whole():
    assert normalise("the PBX, no PBXs", {"PBX": "P B X"}) == "THE P B X NO PBXS"


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
    assert spell(text, language) == upper
    assert spell(upper, language) == upper
    lower = spell(text, language, "lower")
    assert lower == spell(lower, language, "lower")
    assert spell(lower, language, "upper") == upper


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
def test_lower_case_is_that_of_the_language(language, text, lower):
    assert spell(text, language, "lower") == lower


def test_english_in_upper_case_is_what_it_was():
    for text in ("Press 1, then #.", "don’t say 'no'", "L'été à la plage"):
        assert spell(text) == spell(text, "en", "upper") == normalise(text)


def test_another_case_is_refused():
    with pytest.raises(ValueError, match="--case title: it can be upper or lower"):
        spell("a", case="title")
