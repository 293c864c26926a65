"""HTML that is escaped by construction: text becomes markup through one function."""

import json
from html import escape
from typing import Any, Union


class Html(str):
    """Markup; any other string is text."""


VOID = {"meta", "line", "circle", "polyline"}  # without content


def element(name: str, *children: Union[Html, str], **attributes: Any) -> Html:
    """Return an element.

    >>> element("td", "a < b", class_="number", data_value=0.5, hidden=False)
    '<td class="number" data-value="0.5">a &lt; b</td>'

    Args:
      name: of the element.
      children: its content; strings are escaped, :class:`Html` stays as it is.
      attributes: with ``_`` for ``-`` and one behind a word of Python's; None and
        False leave an attribute out, True gives it no value.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID and not children:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Union[Html, str]) -> Html:
    """Return elements and texts behind each other."""
    return Html("".join(c if isinstance(c, Html) else escape(c) for c in children))


def data_block(identifier: str, data: Any) -> Html:
    """Return data for a script of the page; no text in it can end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return element("script", Html(text), type="application/json", id=identifier)
