"""A request to stop: Ctrl-C or SIGTERM becomes a checkpoint and an exit status."""

import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import Any, Optional

NUMBERS = (signal.SIGINT, signal.SIGTERM)
# Within this time, in seconds, two signals are one request: torchrun forwards what the
# terminal has sent to its processes as well, and scripts send SIGTERM after SIGINT.
FORWARDING = 2.0


class TrainingInterruptedError(Exception):
    """A run was asked to stop and has written all that it needs to go on.

    Attributes:
      status: exit status of the command, 128 + the number of the signal.
    """

    def __init__(self, message: str = "", number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.status = 128 + number


class StopRequest:
    """Within its ``with`` block SIGINT and SIGTERM are noted; the process goes on.

    A second signal ends the process at once.  A signal that the process ignored before
    stays ignored: a shell starts background jobs so, and sends them SIGTERM.

    Attributes:
      number: of the signal that has come, 0 before.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}
        self._process = 0
        self._since = 0.0

    @property
    def asked(self) -> bool:
        """True once a signal has come."""
        return self.number != 0

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            for number in NUMBERS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        if os.getpid() != self._process:  # a process started meanwhile, by fork
            signal.signal(number, signal.SIG_DFL)
            return
        now = time.monotonic()
        forwards = "TORCHELASTIC_RUN_ID" in os.environ
        if self.asked:
            may_be_copy = forwards or number != self.number
            if may_be_copy and now - self._since < FORWARDING:
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.number, self._since = number, now
        logging.warning(
            "%s: stopping after this batch, with a checkpoint; once more: at once",
            signal.Signals(number).name,
        )
        if not forwards:  # the default ends a collective operation of torch as well
            signal.signal(number, signal.SIG_DFL)
