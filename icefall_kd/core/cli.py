"""Argument parsing and error messages of the commands in ``icefall_kd/bin``."""

import argparse
import contextlib
import difflib
import importlib
import math
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Optional

PACKAGE = Path(__file__).parents[1]

_K2_REMEDY = (
    "install its wheel for this torch from https://k2-fsa.github.io/k2, or use another "
    "search (modified_beam_search) or backend (torch)"
)
# Package -> how to install it.  k2's wheel depends on torch and Python.
REMEDIES = {
    "k2": _K2_REMEDY,
    "_k2": _K2_REMEDY,
    "ctranslate2": "pip install 'icefall_kd[teachers]'",
    "faster_whisper": "pip install 'icefall_kd[teachers]'",
    "transformers": "pip install 'icefall_kd[transformers]'",
    "onnx": "pip install 'icefall_kd[export]'",
    "onnxruntime": "pip install 'icefall_kd[export]'",
    "kaldi_decoder": "pip install 'icefall_kd[hlg]'",
    "kaldifst": "pip install 'icefall_kd[hlg]'",
    "kaldingram": "pip install 'icefall_kd[hlg]'",
    "sherpa_onnx": "pip install 'icefall_kd[export]'",
    "faiss": "pip install 'icefall_kd[cache]'",
    "multi_quantization": "pip install 'icefall_kd[cache]'",
    "matplotlib": "pip install 'icefall_kd[cache]'",
    "upath": "pip install 'icefall_kd[cache]'",
}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keep the lines of the description, and append the default to each help text."""

    def _get_help_string(self, action: argparse.Action) -> Optional[str]:
        text = action.help or ""
        has_default = action.default not in (None, argparse.SUPPRESS, [], (), "")
        is_option = action.option_strings and action.nargs != 0
        if has_default and is_option and "default" not in text:
            text += " (default: %(default)s)"
        return text


def require_packages(*modules: str) -> None:
    """Import the packages that a command needs, before it reads or writes anything.

    Raises:
      ImportError: if a package cannot be imported; its ``name`` is that package.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as e:  # of the package, or of one of its imports
            raise ImportError(str(e), name=module) from e


class _Parser(argparse.ArgumentParser):
    """Parser that suggests the nearest option for an unknown one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", _HelpFormatter)
        super().__init__(*args, **options)
        self._arguments: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse ``args``, and keep them for the error message."""
        self._arguments = sys.argv[1:] if args is None else args
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        known = tuple(self._option_string_actions)
        if message.startswith("the following arguments are required:"):
            # argparse does not report unknown options in this case.
            names = (str(word).partition("=")[0] for word in self._arguments)
            unknown = [
                name
                for name in names
                if re.fullmatch("--[a-z][a-z0-9-]*", name)
                and not any(option.startswith(name) for option in known)
            ]
            if unknown:
                message += f"; unrecognized arguments: {' '.join(unknown)}"
        if "unrecognized arguments:" in message:
            for word in message.split():
                name = word.partition("=")[0]
                near = difflib.get_close_matches(name, known, n=1)
                if name.startswith("--") and near:
                    message += f"; did you mean {near[0]}?"
        super().error(message)


def create_parser(description: str, **options: Any) -> argparse.ArgumentParser:
    """Return a parser whose ``--help`` prints ``description`` and every default.

    Args:
      description: docstring of the command's module.
      options: other arguments of ``argparse.ArgumentParser``.
    """
    return _Parser(description=description, **options)


def positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    return _parse_int(text, 1)


def non_negative_int(text: str) -> int:
    """Parse an integer of at least 0."""
    return _parse_int(text, 0)


def even_int(text: str) -> int:
    """Parse an even integer of at least 2."""
    value = _parse_int(text, 2)
    if value % 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not an even number")
    return value


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    value = _parse_float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def non_negative_float(text: str) -> float:
    """Parse a finite number of at least 0."""
    value = _parse_float(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def _parse_int(text: str, minimum: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = minimum - 1
    if value < minimum:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an integer of at least {minimum}"
        )
    return value


def _parse_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


@contextlib.contextmanager
def exit_on_error(command: str, *expected: type[Exception]) -> Iterator[None]:
    """Exit with one line on stderr for an expected error; others keep their traceback.

    Expected errors are an ``OSError``, a ``ValueError`` that code of this package
    raises, a missing package of :data:`REMEDIES`, and Ctrl-C.

    Args:
      command: name of the command; the line begins with it.
      expected: further expected exceptions.
    Raises:
      SystemExit: for an expected error, with exit status 1; 130 after Ctrl-C, as in
        shells.
    """
    try:
        yield
    except KeyboardInterrupt as e:
        remedy = "all files are complete; run the same command to resume or restart"
        print(f"\n{command}: interrupted; {remedy}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from e
    except ImportError as e:
        remedy = REMEDIES.get((e.name or "").partition(".")[0])
        if remedy is None:
            raise
        message = f"the package '{e.name}' cannot be imported ({e}); remedy: {remedy}"
        raise SystemExit(f"{command}: {message}") from e
    except (OSError, *expected) as e:
        raise SystemExit(f"{command}: {e}") from e
    except ValueError as e:
        if not _is_raised_by_package(e):
            raise
        raise SystemExit(f"{command}: {e}") from e


def _is_raised_by_package(error: Exception) -> bool:
    """Return whether ``error`` was raised by this package, not by a library."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(PACKAGE)
