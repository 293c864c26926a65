"""Write the numbers of English text as words, with num2words.

num2words converts single numbers.  :data:`_RULES` finds years, amounts of money, times,
fractions and similar expressions in a text.  Pure Python packages for this read 1842 as
a quantity and skip ranges and fractions; the other packages compile grammars.
"""

import re
from collections.abc import Iterable
from typing import Callable

from num2words import num2words

MAX_DIGITS = 15  # longer numbers are read digit by digit

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
# Sign -> singular and plural of the unit, singular and plural of its hundredth.
_MONEY = {
    "$": ("DOLLAR", "DOLLARS", "CENT", "CENTS"),
    "£": ("POUND", "POUNDS", "PENNY", "PENCE"),
    "€": ("EURO", "EUROS", "CENT", "CENTS"),
    "¥": ("YEN", "YEN", "SEN", "SEN"),
    "₹": ("RUPEE", "RUPEES", "PAISA", "PAISE"),
}
# fmt: off
_SCALES = {
    "K": "THOUSAND", "M": "MILLION", "MN": "MILLION", "B": "BILLION", "BN": "BILLION",
    "TN": "TRILLION",
}
_UNITS = {
    "KM/H": "KILOMETER PER HOUR", "KPH": "KILOMETER PER HOUR", "MPH": "MILE PER HOUR",
    "M/S": "METER PER SECOND", "KM": "KILOMETER", "CM": "CENTIMETER",
    "MM": "MILLIMETER", "FT": "FOOT", "YDS": "YARD", "KG": "KILOGRAM",
    "MG": "MILLIGRAM", "LBS": "POUND", "LB": "POUND", "OZ": "OUNCE", "ML": "MILLILITER",
    "HZ": "HERTZ", "KHZ": "KILOHERTZ", "MHZ": "MEGAHERTZ", "GHZ": "GIGAHERTZ",
    "KB": "KILOBYTE", "MB": "MEGABYTE", "GB": "GIGABYTE", "TB": "TERABYTE",
    "KW": "KILOWATT", "HRS": "HOUR", "MIN": "MINUTE", "MINS": "MINUTE", "SEC": "SECOND",
    "SECS": "SECOND", "¢": "CENT", "°C": "DEGREE CELSIUS", "°F": "DEGREE FAHRENHEIT",
    "°": "DEGREE",
}
_IDIOMS = {
    "24/7": "TWENTY FOUR SEVEN", "9/11": "NINE ELEVEN", "911": "NINE ONE ONE",
    "50/50": "FIFTY FIFTY", "50-50": "FIFTY FIFTY",
}
# fmt: on
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅛": "1/8"}
_MONTHS = (
    "JANUARY|FEBRUARY|MARCH|APRIL|MAY|JUNE|JULY|AUGUST|SEPTEMBER|OCTOBER|NOVEMBER|"
    "DECEMBER"
)


def write_english_numbers(text: str) -> str:
    """Return English text with numbers as words, surrounded by additional spaces.

    >>> text = write_english_numbers("IN 1842, 300 MEN HAD $5")
    >>> " ".join(text.replace(",", " ").split())
    'IN EIGHTEEN FORTY TWO THREE HUNDRED MEN HAD FIVE DOLLARS'

    Args:
      text: upper case, with its punctuation.
    """
    for sign, fraction in _VULGAR.items():
        text = text.replace(sign, f" {fraction}")
    text = text.replace("−", "-").replace("⁄", "/")
    for pattern, write in _RULES:
        text = pattern.sub(lambda m, write=write: f" {write(m)} ", text)
    return text


def extract_words(text: str) -> str:
    """Return the words in num2words' output, in upper case, without hyphens."""
    return re.sub(r"[^A-Z]+", " ", text.upper()).strip()


def read_digits(digits: str) -> str:
    """Return the digits of a string as words, one by one: "1-2" gives "ONE TWO"."""
    return " ".join(extract_words(num2words(int(d))) for d in digits if d.isdecimal())


def spell_number(number: str) -> str:
    """Return a number in upper-case words, as telephone prompts read it.

    A number of up to two digits becomes a cardinal; a longer one is read digit by
    digit.

    >>> spell_number("28.8"), spell_number("1234"), spell_number("3RD")
    ('TWENTY EIGHT POINT EIGHT', 'ONE TWO THREE FOUR', 'THIRD')

    Args:
      number: digits with optional thousands commas, one decimal point, and an
        upper-case ordinal ending.
    """
    number = number.replace(",", "")
    ordinal = re.fullmatch(r"(\d+)(?:ST|ND|RD|TH)", number)
    if ordinal:
        return extract_words(num2words(int(ordinal[1]), to="ordinal"))
    integer, _, fraction = number.partition(".")
    is_short = len(integer) <= 2 and not integer.startswith("0")
    if fraction or is_short or integer == "0":
        spoken = extract_words(num2words(int(integer)))
    else:
        spoken = read_digits(integer)
    return f"{spoken} POINT {read_digits(fraction)}" if fraction else spoken


# The functions below return words, for digits or for the match of a rule.


def _write(digits: str, to: str = "cardinal") -> str:
    """Return a number in American English, without "and".

    Args:
      to: "cardinal", "ordinal" or "year".
    """
    digits = digits.replace(",", "")
    if len(digits) > MAX_DIGITS:
        return read_digits(digits)
    return re.sub(r" AND(?= )", "", extract_words(num2words(int(digits), to=to)))


def _write_minutes(digits: str) -> str:
    """Return two digits as minutes: "OH FIVE", "THIRTY"."""
    return f"OH {_write(digits)}" if digits[0] == "0" else _write(digits)


def _write_quantity(number: str) -> str:
    """Return a count or measure: "ONE THOUSAND", "TWO POINT FIVE"."""
    integer, _, fraction = number.partition(".")
    return _write(integer) + (f" POINT {read_digits(fraction)}" if fraction else "")


def _write_number(number: str) -> str:
    """Return a number without context as a year, a code or a quantity."""
    if not number.isdecimal():
        return _write_quantity(number)
    if len(number) > 1 and number[0] == "0":
        return read_digits(number)
    if len(number) == 4 and 1010 <= int(number) < 2100:
        return _write(number, "year")
    if len(number) > 4 and int(number) % 100:
        return read_digits(number)  # such as a post code
    return _write(number)


def _write_number_of_name(number: str) -> str:
    """Return the number after letters: B52, A380, H.323, GPT-3.5."""
    is_plain = number.isdecimal() and number[0] != "0" and not number.endswith("00")
    if not is_plain or not 3 <= len(number) <= 4 or 1010 <= int(number) < 2100:
        return _write_number(number)
    return f"{_write(number[:-2])} {_write_minutes(number[-2:])}"


def _write_plural(m: "re.Match[str]") -> str:
    """Return a plural: 1920s, '90s, 747s."""
    words = _write_number(m[1])
    if m[2] and int(m[1]) % 10:
        return f"{words}'S"  # the genitive of a year, 1842's
    if words.endswith("Y"):
        return f"{words[:-1]}IES"
    return f"{words}ES" if words.endswith("X") else f"{words}S"


def _write_amount(sign: str, number: str, scale: str = "") -> str:
    """Return an amount of money: $5, $3.50, $1.2 billion."""
    singular, plural, cent, cents = _MONEY[sign]
    integer, _, fraction = number.partition(".")
    if scale or (fraction and len(fraction) != 2):
        amount = f"{_write_quantity(number)} {_SCALES.get(scale, scale)}".strip()
        return f"{amount} {plural}"
    parts = []
    if int(integer.replace(",", "")) or not int(fraction or 0):
        parts.append(f"{_write(integer)} {singular if integer == '1' else plural}")
    if int(fraction or 0):
        parts.append(f"{_write(fraction)} {cent if int(fraction) == 1 else cents}")
    return " AND ".join(parts)


def _write_money(m: "re.Match[str]") -> str:
    """Return an amount or a range of money: $5, $5-10, a $5 bill."""
    last = m["high"] or m["low"]
    amount = _write_amount(m["sign"], last, m["scale"] or "")
    if re.match(r"[- ](BILL|NOTE|COIN)S?\b", m.string[m.end() :]):
        amount = f"{_write_quantity(last)} {_MONEY[m['sign']][0]}"
    return f"{_write_quantity(m['low'])} TO {amount}" if m["high"] else amount


def _write_time(m: "re.Match[str]") -> str:
    """Return a time of day: 3:05 p.m., 15:00, 7 p.m."""
    hour, minute, half = m["hour"], m["minute"], m["half"]  # half of the day: A or P
    words = [_write(hour)]
    if minute and (minute != "00" or m["second"]):
        words.append(_write_minutes(minute))
    elif not half:
        words.append("O'CLOCK" if 1 <= int(hour) <= 12 else "HUNDRED")
    if m["second"]:
        words.append(_write_minutes(m["second"]))
    return " ".join([*words, *([half, "M"] if half else [])])


def _write_fraction(m: "re.Match[str]") -> str:
    """Return a fraction: 2/3, 5 1/2.

    Numbers around a slash that are not a proper fraction are read one after another.
    """
    integer, top, bottom = m["integer"], int(m["top"]), int(m["bottom"])
    if not 0 < top < bottom <= 100:
        parts = [part for part in (integer, m["top"], m["bottom"]) if part]
        return " ".join(_write_number(part) for part in parts)
    name = {2: "HALF", 4: "QUARTER"}.get(bottom) or _write(m["bottom"], "ordinal")
    if top > 1:
        name = "HALVES" if bottom == 2 else f"{name}S"
    first = "A" if integer and top == 1 and bottom in (2, 4) else _write(str(top))
    return f"{_write(integer)} AND {first} {name}" if integer else f"{first} {name}"


def _write_measure(m: "re.Match[str]") -> str:
    """Return a number with a unit: 5 km, 60 mph; singular in "a 5-km race"."""
    unit = _UNITS[m["unit"]]
    if m["number"] != "1" and m["link"] != "-" and not unit.endswith("HERTZ"):
        first, *rest = unit.split()
        unit = " ".join(["FEET" if first == "FOOT" else f"{first}S", *rest])
    return f"{_write_quantity(m['number'])} {unit}"


def _any_of(options: Iterable[str]) -> str:
    """Return a pattern of alternatives, longest first."""
    return "|".join(sorted(map(re.escape, options), key=len, reverse=True))


# The number does not continue before or after the match.
_BEFORE = r"(?<![\w$£€.,:/-])"
_AFTER = r"(?![\w/]|[.,:-]\d)"
_SIGN = f"[{''.join(_MONEY)}]"
# (pattern, function that returns words).  Each rule reads the output of those above it.
# The comment before a rule has examples.
_RULES: list[tuple["re.Pattern[str]", Callable[["re.Match[str]"], str]]] = [
    (re.compile(pattern), write)
    for pattern, write in (
        # 24/7
        (rf"(?<![\w$£€.,:/])({_any_of(_IDIOMS)}){_AFTER}", lambda m: _IDIOMS[m[1]]),
        # No. 5, #1, Nos. 3 and 4
        (r"\bNO\.\s*(?=\d)|[#№]\s?(?=\d)", lambda m: "NUMBER"),
        (r"\bNOS\.\s*(?=\d)", lambda m: "NUMBERS"),
        # +1 212-555-1234, (212) 555-1234, 555-1234; 12-34-56
        (
            rf"(?<![\w$£€.,-])(?:(?:\+?\d{{1,2}}[-. ])?(?:\(\d{{3}}\) ?|\d{{3}}[-. ]))?"
            rf"\d{{3}}[-.]\d{{4}}{_AFTER}|{_BEFORE}\d+(?:-\d+){{2,}}{_AFTER}",
            lambda m: read_digits(m[0]),
        ),
        # 3:30-4:15, 11:00 AM
        (r"(?<=:\d\d)[-–](?=\d\d?:\d\d)", lambda m: "TO"),
        (
            r"(?<![\d:.])(?P<hour>[01]?\d|2[0-4])(?::(?P<minute>[0-5]\d)"
            r"(?::(?P<second>[0-5]\d))?(?![:\d])(?:\s?O'CLOCK)?"
            r"(?:\s?(?P<half>[AP])\.?\s?M\b\.?)?)",
            _write_time,
        ),
        # 7 p.m., 7.30 p.m.
        (
            r"(?<![\d:.])(?P<hour>[01]?\d)(?:\.(?P<minute>[0-5]\d))?(?P<second>)"
            r"\s?(?P<half>[AP])\.?\s?M\b\.?",
            _write_time,
        ),
        # 2:1
        (r"(?<=\d):(?=\d)", lambda m: "TO"),
        # 5'10"
        (
            r"(?<![\w.])(\d)'\s?(\d{1,2})(?:\"|'')?(?!\w)",
            lambda m: f"{_write(m[1])} FOOT {_write(m[2])}",
        ),
        # -5
        (r"(?<![\w)%.])-(?=[$£€]?\.?\d)", lambda m: "MINUS"),
        # 1/2, 5 1/2
        (
            r"(?<![\d/.,$])(?:(?P<integer>\d{1,3})[ -]+)?(?P<top>\d+)/(?P<bottom>\d+)"
            r"(?:TH|RD|ND|ST)?S?(?![\w/])",
            _write_fraction,
        ),
        # $5, $5-10, $1.2 billion, 5 €
        (
            rf"(?P<sign>{_SIGN})\s?(?P<low>{_NUMBER})"
            rf"(?:[-–](?P=sign)?(?P<high>{_NUMBER}))?(?:\s?"
            rf"(?P<scale>HUNDRED|{_any_of(_SCALES.values())}|{_any_of(_SCALES)})\b)?",
            _write_money,
        ),
        (rf"({_NUMBER})\s?({_SIGN})", lambda m: _write_amount(m[2], m[1])),
        # 10-12
        (r"(?<=[\d%])[-–](?=\d)", lambda m: "TO"),
        # 5 km
        (
            rf"(?<![\w.,])(?P<number>{_NUMBER})(?P<link>\s?|-)"
            rf"(?P<unit>{_any_of(_UNITS)})(?![\w/])",
            _write_measure,
        ),
        # 1920s
        (r"(?<![\d.,])'?(\d+)('?)S\b", _write_plural),
        # July 4
        (
            rf"(?<=\b)({_MONTHS}) (\d{{1,2}})(?![\w:/%-]|[.,]\d)",
            lambda m: f"{m[1]} {_write(m[2], 'ordinal')}",
        ),
        # 3rd
        (
            r"(?<![.\d])(\d{1,3}(?:,\d{3})+|\d+)(?:ST|ND|RD|TH)\b",
            lambda m: _write(m[1], "ordinal"),
        ),
        # 2.0.1
        (
            r"\d+(?:\.\d+){2,}",
            lambda m: " POINT ".join(_write_number(part) for part in m[0].split(".")),
        ),
        # B52
        (rf"(?<=[A-Z])[-.]?({_NUMBER})", lambda m: _write_number_of_name(m[1])),
        # .5
        (r"(?<!\w)\.(\d+)", lambda m: f"POINT {read_digits(m[1])}"),
        (_NUMBER, lambda m: _write_number(m[0])),
    )
]
