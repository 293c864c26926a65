"""Numbers written as words, as they are read aloud, by num2words.

No light package of the index reads English text whole: those that are pure Python take
1842 for a quantity and leave ranges and fractions, the others compile grammars.  So
the patterns of English (years, amounts of money, times, ...) are rules here, and every
number is num2words'.  Other languages have their cardinals alone.
"""

import contextlib
import re
from typing import Callable

from num2words import CONVERTER_CLASSES, num2words

STYLES = ("spoken", "digits", "keep")
# Codes of num2words 0.5; its Amharic never returns from a number above a million.
LANGUAGES = sorted(c for c in CONVERTER_CLASSES if "_" not in c and c != "am")

_NUM = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_LONGEST = 15  # digits of a number that is read as a quantity

# Sign -> one and several of the unit, one and several of its hundredth.
_MONEY = {
    "$": ("DOLLAR", "DOLLARS", "CENT", "CENTS"),
    "£": ("POUND", "POUNDS", "PENNY", "PENCE"),
    "€": ("EURO", "EUROS", "CENT", "CENTS"),
    "¥": ("YEN", "YEN", "SEN", "SEN"),
    "₹": ("RUPEE", "RUPEES", "PAISA", "PAISE"),
}
_SCALES = {"K": "THOUSAND", "M": "MILLION", "MN": "MILLION"}
_SCALES.update(B="BILLION", BN="BILLION", TN="TRILLION")
_UNITS = {
    "KM/H": ("KILOMETER PER HOUR", "KILOMETERS PER HOUR"),
    "KPH": ("KILOMETER PER HOUR", "KILOMETERS PER HOUR"),
    "MPH": ("MILE PER HOUR", "MILES PER HOUR"),
    "M/S": ("METER PER SECOND", "METERS PER SECOND"),
    "KM": ("KILOMETER", "KILOMETERS"),
    "CM": ("CENTIMETER", "CENTIMETERS"),
    "MM": ("MILLIMETER", "MILLIMETERS"),
    "FT": ("FOOT", "FEET"),
    "YDS": ("YARD", "YARDS"),
    "KG": ("KILOGRAM", "KILOGRAMS"),
    "MG": ("MILLIGRAM", "MILLIGRAMS"),
    "LBS": ("POUND", "POUNDS"),
    "LB": ("POUND", "POUNDS"),
    "OZ": ("OUNCE", "OUNCES"),
    "ML": ("MILLILITER", "MILLILITERS"),
    "HZ": ("HERTZ", "HERTZ"),
    "KHZ": ("KILOHERTZ", "KILOHERTZ"),
    "MHZ": ("MEGAHERTZ", "MEGAHERTZ"),
    "GHZ": ("GIGAHERTZ", "GIGAHERTZ"),
    "KB": ("KILOBYTE", "KILOBYTES"),
    "MB": ("MEGABYTE", "MEGABYTES"),
    "GB": ("GIGABYTE", "GIGABYTES"),
    "TB": ("TERABYTE", "TERABYTES"),
    "KW": ("KILOWATT", "KILOWATTS"),
    "HRS": ("HOUR", "HOURS"),
    "MIN": ("MINUTE", "MINUTES"),
    "MINS": ("MINUTE", "MINUTES"),
    "SEC": ("SECOND", "SECONDS"),
    "SECS": ("SECOND", "SECONDS"),
    "¢": ("CENT", "CENTS"),
    "°C": ("DEGREE CELSIUS", "DEGREES CELSIUS"),
    "°F": ("DEGREE FAHRENHEIT", "DEGREES FAHRENHEIT"),
    "°": ("DEGREE", "DEGREES"),
}
_IDIOMS = {"24/7": "TWENTY FOUR SEVEN", "9/11": "NINE ELEVEN", "911": "NINE ONE ONE"}
_IDIOMS.update({"50/50": "FIFTY FIFTY", "50-50": "FIFTY FIFTY"})
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅛": "1/8"}
_MONTHS = (
    "JANUARY|FEBRUARY|MARCH|APRIL|MAY|JUNE|JULY|AUGUST|SEPTEMBER|OCTOBER|NOVEMBER|"
    "DECEMBER"
)

# Of other languages: what parts thousands and what begins decimals.
_POINT_LANGUAGES = ("bn", "he", "hi", "ja", "kn", "ko", "te", "th", "zh")
_NO_DECIMALS = ("ar", "cy", "tr", "vi")  # num2words reads 2.5 as 2.50, or as 2
_YEARS_BY_HUNDREDS = ("da", "de", "nl", "no", "sl")
_AS_NUM2WORDS = {"kk": "kz", "nb": "no", "nn": "no"}
# What num2words raises for the numbers that it lacks in some languages.
_GAPS = (AttributeError, KeyError, NotImplementedError, OverflowError, TypeError)
_PERCENT = {
    "cs": "procent",
    "da": "procent",
    "de": "Prozent",
    "es": "por ciento",
    "fi": "prosenttia",
    "fr": "pour cent",
    "it": "per cento",
    "nl": "procent",
    "no": "prosent",
    "pl": "procent",
    "pt": "por cento",
    "ru": "процентов",
    "sv": "procent",
    "uk": "відсотків",
}


def check_style(language: str, numbers: str) -> None:
    """Refuse a style of numbers that a language cannot have.

    Args:
      language: its code, as Whisper has it.
      numbers:  of :data:`STYLES`.
    Raises:
      ValueError: for another style, "keep" in English, and a language that num2words
        lacks.
    """
    if numbers not in STYLES:
        raise ValueError(f"--numbers {numbers}: choose one of {', '.join(STYLES)}")
    if numbers == "keep":
        if language == "en":
            raise ValueError(
                "--numbers keep: English texts have no digits; choose spoken or digits"
            )
    elif _num2words_language(language) not in LANGUAGES:
        raise ValueError(
            f"--language {language}: num2words cannot write its numbers as words; give "
            f"--numbers keep to leave digits. It has {', '.join(LANGUAGES)}"
        )


def write_english(text: str) -> str:
    """Return English text with its numbers as words: years, money, times, units, ...

    >>> " ".join(write_english("IN 1842, 300 MEN HAD $5").replace(",", " ").split())
    'IN EIGHTEEN FORTY TWO THREE HUNDRED MEN HAD FIVE DOLLARS'

    Args:
      text: upper case; the punctuation of numbers is read, all other stays.
    """
    for sign, fraction in _VULGAR.items():
        text = text.replace(sign, f" {fraction}")
    text = text.replace("−", "-").replace("⁄", "/")
    for pattern, write in _RULES:
        text = pattern.sub(lambda m, write=write: f" {write(m)} ", text)
    return text


def write_other(text: str, language: str, numbers: str) -> str:
    """Return text of a language other than English with its numbers as words.

    Cardinals, decimals, years where they are read by hundreds, and the per cent sign
    of some languages; case and gender are those that num2words has by default.

    Args:
      numbers: "spoken", or "digits" for one word a digit.
    """
    code = _num2words_language(language)

    def say(value: float, **options: str) -> str:
        return str(num2words(value, lang=code, **options))

    def cardinal(digits: str) -> str:
        if len(digits) <= _LONGEST and (digits[0] != "0" or len(digits) == 1):
            with contextlib.suppress(*_GAPS):
                return say(int(digits))
        return " ".join(say(int(d)) for d in digits)

    def one(match: "re.Match[str]") -> str:
        found = match[0]
        if numbers == "digits":
            return " ".join(say(int(d)) for d in found if d.isdecimal())
        point, comma = (".", ",") if language in _POINT_LANGUAGES else (",", ".")
        grouped = re.fullmatch(
            rf"\d{{1,3}}([{comma}'’ \u00a0\u202f])\d{{3}}(\1\d{{3}})*", found
        )
        if grouped:
            return cardinal(re.sub(r"\D", "", found))
        if code in _YEARS_BY_HUNDREDS and re.fullmatch(r"1[1-9]\d\d", found):
            return say(int(found), to="year")
        whole, sign, fraction = found.partition(point)
        decimal = sign and whole.isdecimal() and fraction.isdecimal()
        if decimal and code not in _NO_DECIMALS:
            with contextlib.suppress(*_GAPS):
                return say(float(f"{int(whole)}.{fraction}"))
        return " ".join(map(cardinal, re.findall(r"\d+", found)))

    spaced = r"\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?!\d)"
    gap = "" if language in ("ja", "th", "zh") else " "  # no spaces between words
    text = re.sub(rf"{spaced}|\d+(?:[.,'’]\d+)*", lambda m: f"{gap}{one(m)}{gap}", text)
    return text.replace("%", f" {_PERCENT.get(code, '')} ")


def words_of(text: str) -> str:
    """Return the words of what num2words writes, in upper case."""
    return re.sub(r"[^A-Z]+", " ", text.upper()).strip()


def read_digits(digits: str) -> str:
    """Return digits one by one; whatever else is in between is dropped."""
    return " ".join(words_of(num2words(int(d))) for d in digits if d.isdecimal())


def _num2words_language(language: str) -> str:
    return _AS_NUM2WORDS.get(language, language)


def _cardinal(digits: str) -> str:
    """Return a quantity as American English words: without "and"."""
    digits = digits.replace(",", "")
    if len(digits) > _LONGEST:
        return read_digits(digits)
    return re.sub(r" AND(?= )", "", words_of(num2words(int(digits))))


def _year(digits: str) -> str:
    return re.sub(r" AND(?= )", "", words_of(num2words(int(digits), to="year")))


def _oh(digits: str) -> str:
    """Return two digits as minutes are read: "OH FIVE", "THIRTY"."""
    return f"OH {_cardinal(digits)}" if digits[0] == "0" else _cardinal(digits)


def _quantity(number: str) -> str:
    """Return a number that counts or measures: "ONE THOUSAND", "TWO POINT FIVE"."""
    whole, _, fraction = number.partition(".")
    return _cardinal(whole) + (f" POINT {read_digits(fraction)}" if fraction else "")


def _number(number: str) -> str:
    """Return a number of which nothing is known but its digits."""
    if not number.isdecimal():
        return _quantity(number)
    if len(number) > 1 and number[0] == "0":
        return read_digits(number)
    if len(number) == 4 and 1010 <= int(number) < 2100:
        return _year(number)
    if len(number) > 4 and int(number) % 100:
        return read_digits(number)  # a post code, an account
    return _cardinal(number)


def _behind_letters(number: str) -> str:
    """Return the number of a name: B52, A380, H.323, GPT-3.5."""
    special = not number.isdecimal() or number[0] == "0" or number.endswith("00")
    if special or not 3 <= len(number) <= 4 or 1010 <= int(number) < 2100:
        return _number(number)
    return f"{_cardinal(number[:-2])} {_oh(number[-2:])}"


def _several(m: "re.Match[str]") -> str:
    """Return the plural of a number, as of a decade: 1920s, '90s, 747s."""
    words = _number(m[1])
    if m[2] and int(m[1]) % 10:
        return f"{words}'S"  # of the year 1842
    if words.endswith("Y"):
        return f"{words[:-1]}IES"
    return f"{words}ES" if words.endswith("X") else f"{words}S"


def _money(sign: str, number: str, scale: str = "") -> str:
    one, several, cent, cents = _MONEY[sign]
    whole, _, fraction = number.partition(".")
    if scale or (fraction and len(fraction) != 2):
        amount = f"{_quantity(number)} {_SCALES.get(scale, scale)}".strip()
        return f"{amount} {several}"
    parts = []
    if int(whole.replace(",", "")) or not int(fraction or 0):
        parts.append(f"{_cardinal(whole)} {one if whole == '1' else several}")
    if int(fraction or 0):
        parts.append(f"{_cardinal(fraction)} {cent if int(fraction) == 1 else cents}")
    return " AND ".join(parts)


def _sum_of_money(m: "re.Match[str]") -> str:
    last = m["high"] or m["low"]
    amount = _money(m["sign"], last, m["scale"] or "")
    if re.match(r"[- ](BILL|NOTE|COIN)S?\b", m.string[m.end() :]):  # a five dollar bill
        amount = f"{_quantity(last)} {_MONEY[m['sign']][0]}"
    return f"{_quantity(m['low'])} TO {amount}" if m["high"] else amount


def _time(m: "re.Match[str]") -> str:
    hour, minute, half = m["hour"], m["minute"], m["half"]
    words = [_cardinal(hour)]
    if minute and (minute != "00" or m["second"]):
        words.append(_oh(minute))
    elif not half:
        words.append("O'CLOCK" if 1 <= int(hour) <= 12 else "HUNDRED")
    if m["second"]:
        words.append(_oh(m["second"]))
    return " ".join([*words, *([half, "M"] if half else [])])


def _fraction(m: "re.Match[str]") -> str:
    whole, over, under = m["whole"], int(m["over"]), int(m["under"])
    if not 0 < over < under <= 100:
        parts = [part for part in (whole, m["over"], m["under"]) if part]
        return " ".join(_number(part) for part in parts)
    name = {2: "HALF", 4: "QUARTER"}.get(under)
    name = name or words_of(num2words(under, to="ordinal"))
    if over > 1:
        name = "HALVES" if under == 2 else f"{name}S"
    first = "A" if whole and over == 1 and under in (2, 4) else _cardinal(str(over))
    return f"{_cardinal(whole)} AND {first} {name}" if whole else f"{first} {name}"


def _unit(m: "re.Match[str]") -> str:
    # "A 5-km race" has the unit in the singular.
    one = m["number"] == "1" or m["link"] == "-"
    return f"{_quantity(m['number'])} {_UNITS[m['unit']][0 if one else 1]}"


def _ordinal(digits: str) -> str:
    digits = digits.replace(",", "")
    if len(digits) > _LONGEST:
        return read_digits(digits)
    words = words_of(num2words(int(digits), to="ordinal"))
    return re.sub(r" AND(?= )", "", words)


def _any(options: object) -> str:
    return "|".join(sorted(map(re.escape, options), key=len, reverse=True))  # type: ignore


_Rule = tuple["re.Pattern[str]", Callable[["re.Match[str]"], str]]
_BARE = r"(?<![\w$£€.,:/-])"  # before what stands alone
_END = r"(?![\w/]|[.,:-]\d)"
_SIGN = f"[{''.join(_MONEY)}]"
_RULES: list[_Rule] = [
    (re.compile(pattern), write)
    for pattern, write in (
        (rf"(?<![\w$£€.,:/])({_any(_IDIOMS)}){_END}", lambda m: _IDIOMS[m[1]]),
        (r"\bNO\.\s*(?=\d)|[#№]\s?(?=\d)", lambda m: "NUMBER"),
        (r"\bNOS\.\s*(?=\d)", lambda m: "NUMBERS"),
        (
            # +1 212-555-1234, (212) 555-1234, 555-1234; 12-34-56
            rf"(?<![\w$£€.,-])(?:(?:\+?\d{{1,2}}[-. ])?(?:\(\d{{3}}\) ?|\d{{3}}[-. ]))?"
            rf"\d{{3}}[-.]\d{{4}}{_END}|{_BARE}\d+(?:-\d+){{2,}}{_END}",
            lambda m: read_digits(m[0]),
        ),
        (r"(?<=:\d\d)[-–](?=\d\d?:\d\d)", lambda m: "TO"),
        (
            r"(?<![\d:.])(?P<hour>[01]?\d|2[0-4])(?::(?P<minute>[0-5]\d)"
            r"(?::(?P<second>[0-5]\d))?(?![:\d])(?:\s?O'CLOCK)?"
            r"(?:\s?(?P<half>[AP])\.?\s?M\b\.?)?)",
            _time,
        ),
        (  # 7 p.m., 7.30 p.m.
            r"(?<![\d:.])(?P<hour>[01]?\d)(?:\.(?P<minute>[0-5]\d))?(?P<second>)"
            r"\s?(?P<half>[AP])\.?\s?M\b\.?",
            _time,
        ),
        (r"(?<=\d):(?=\d)", lambda m: "TO"),
        (
            r"(?<![\w.])(\d)'\s?(\d{1,2})(?:\"|'')?(?!\w)",
            lambda m: f"{_cardinal(m[1])} FOOT {_cardinal(m[2])}",
        ),
        (r"(?<![\w)%.])-(?=[$£€]?\.?\d)", lambda m: "MINUS"),
        (
            r"(?<![\d/.,$])(?:(?P<whole>\d{1,3})[ -]+)?(?P<over>\d+)/(?P<under>\d+)"
            r"(?:TH|RD|ND|ST)?S?(?![\w/])",
            _fraction,
        ),
        (
            rf"(?P<sign>{_SIGN})\s?(?P<low>{_NUM})(?:[-–](?P=sign)?(?P<high>{_NUM}))?"
            rf"(?:\s?(?P<scale>HUNDRED|{_any(_SCALES.values())}|{_any(_SCALES)})\b)?",
            _sum_of_money,
        ),
        (rf"({_NUM})\s?({_SIGN})", lambda m: _money(m[2], m[1])),
        (r"(?<=[\d%])[-–](?=\d)", lambda m: "TO"),
        (
            rf"(?<![\w.,])(?P<number>{_NUM})(?P<link>\s?|-)(?P<unit>{_any(_UNITS)})"
            r"(?![\w/])",
            _unit,
        ),
        (r"(?<![\d.,])'?(\d+)('?)S\b", _several),
        (
            rf"(?<=\b)({_MONTHS}) (\d{{1,2}})(?![\w:/%-]|[.,]\d)",
            lambda m: f"{m[1]} {_ordinal(m[2])}",
        ),
        (
            r"(?<![.\d])(\d{1,3}(?:,\d{3})+|\d+)(?:ST|ND|RD|TH)\b",
            lambda m: _ordinal(m[1]),
        ),
        (
            r"\d+(?:\.\d+){2,}",
            lambda m: " POINT ".join(_number(part) for part in m[0].split(".")),
        ),
        (rf"(?<=[A-Z])[-.]?({_NUM})", lambda m: _behind_letters(m[1])),
        (r"(?<!\w)\.(\d+)", lambda m: f"POINT {read_digits(m[1])}"),
        (_NUM, lambda m: _number(m[0])),
    )
]
