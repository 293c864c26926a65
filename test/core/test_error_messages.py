"""The check of messages in ``pytest.raises`` of the tests."""

import error_messages
import pytest

from icefall_kd.recipes.systems import parse_system


def test_a_message_with_a_place_passes():
    with pytest.raises(ValueError):
        parse_system("baseline@x")


def test_a_message_without_a_place_fails(monkeypatch):
    monkeypatch.setattr(error_messages, "PLACE", error_messages.re.compile("nowhere"))
    with error_messages._raises(AssertionError, match="names no place"):
        with pytest.raises(ValueError):
            parse_system("baseline@x")
