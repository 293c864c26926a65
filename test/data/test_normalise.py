import pytest

from icefall_kd.data.normalise import NORMALISED, normalise, spell_number


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
