"""Commands: ``python -m icefall_kd.bin.<verb>``.  Each parses and calls the package."""

import sys
from typing import Any


def _print_interrupt(kind: Any, error: Any, trace: Any) -> None:
    """Print a line for Ctrl-C in place of a traceback, which other errors keep."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted before the command began", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# While Python imports a command, which takes seconds; core/cli.py does the rest.
if sys.argv[:1] == ["-m"]:
    sys.excepthook = _print_interrupt
