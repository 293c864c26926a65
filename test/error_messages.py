"""``pytest.raises`` that also checks where an error message points to.

Messages of icefall_kd for users name a file, a cut, a field, an option or a value.
"""

import re
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Optional

import pytest

import icefall_kd
from icefall_kd.data.audio_files import AudioError

PACKAGE = Path(icefall_kd.__file__).parent
USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, SystemExit)
# A path, an option (--a-b, a.b, a_b), "name: ...", a quoted or listed name, a number.
PLACE = re.compile(
    r"\S/\S|--[a-z]|\b[a-z_]+[._][a-z_]{2}|^[\w /@-]+: |(?<!\w)['\"]\S|[\[({]\S|\d"
)


def is_for_users(error: BaseException) -> bool:
    """Return whether a line of the package raised an error with a text for users."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not Path(frames[-1].filename).is_relative_to(PACKAGE):
        return False
    if isinstance(error, SystemExit):
        return isinstance(error.code, str)
    # Callers put the file in front of the text of an AudioError.
    return isinstance(error, USER_ERRORS) and not isinstance(error, AudioError)


class CheckedRaises:
    """Context of ``pytest.raises`` that checks the message of the error."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def __enter__(self) -> Any:
        return self.context.__enter__()

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> bool:
        is_expected = self.context.__exit__(kind, error, trace)
        if is_expected and error is not None and is_for_users(error):
            text = str(error)
            assert PLACE.search(text), f"the message names no place: {text}"
        return is_expected


_raises = pytest.raises


def raises(*args: Any, **kwargs: Any) -> Any:
    """``pytest.raises`` with the check of messages."""
    context = _raises(*args, **kwargs)
    return CheckedRaises(context) if hasattr(context, "__exit__") else context


pytest.raises = raises
