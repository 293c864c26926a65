"""Commands: ``python -m icefall_kd.bin.<verb>``."""

import sys
from typing import Any


def _print_interrupt(kind: Any, error: Any, trace: Any) -> None:
    """Print one line for Ctrl-C, and the traceback for other errors."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted during start-up", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# The imports of a command take seconds; afterwards core/cli.py handles Ctrl-C.
if sys.argv[:1] == ["-m"]:
    sys.excepthook = _print_interrupt
