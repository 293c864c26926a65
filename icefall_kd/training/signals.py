"""A request to stop: SIGTERM becomes a checkpoint and an exit status of its own."""

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any, Optional

STATUS = 128 + signal.SIGTERM  # 143, as shells report a process ended by SIGTERM


class TrainingInterruptedError(Exception):
    """A run was asked to stop and has written all that it needs to go on."""


class StopRequest:
    """Within its ``with`` block SIGTERM is noted instead of ending the process.

    A second SIGTERM ends it at once.

    Attributes:
      asked: SIGTERM has come.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None
        self._process = 0

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self._restore()
        if os.getpid() != self._process:  # a process started meanwhile, by fork
            os.kill(os.getpid(), number)
            return
        self.asked = True
        logging.warning(
            "SIGTERM: stopping after this batch, with a checkpoint; once more: at once"
        )

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
