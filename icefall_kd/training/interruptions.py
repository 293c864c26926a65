"""Requests to stop, and processes of a job that are lost.

SIGINT and SIGTERM become a :class:`StopRequest`: the run writes a checkpoint and exits
with status 128 + signal.

:class:`PeerWatch` ends a process when another process of its job is lost.  Each process
writes a heartbeat to the job's key-value store every few seconds and reads the
heartbeats of the others.  A process that raises an error leaves its message in the
store.  So the others exit soon and report the cause, also where a collective operation
would wait for the 10 minutes that ``init_world`` sets: for a frozen process, or with
NCCL.  torchrun notices only processes that exit.

Silence is counted in reads of the store, not in seconds.  A job that is frozen as a
whole (a suspended node, a paused container) therefore continues when it is resumed,
unless the pause exceeds the timeout of a collective operation.
"""

import datetime
import logging
import os
import re
import signal
import threading
import time
from types import FrameType
from typing import Any, Optional

from torch import distributed as dist

from icefall_kd.core.distributed import World
from icefall_kd.training.skipped import TrainingStoppedError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Two signals within this time, in seconds, are one request: torchrun forwards a signal
# that its processes also get from the terminal, and scripts send SIGTERM after SIGINT.
FORWARDING = 2.0

HEARTBEAT = 2.0  # s between two heartbeats
PATIENCE = 45.0  # s without a heartbeat after which a process counts as lost
REMEDY = "start the job again: training resumes from the last checkpoint"

# Errors of gloo, NCCL and their sockets when another process does not answer.
_CONNECTION_ERROR = re.compile(
    r"gloo|NCCL|[Ss]ocket|[Tt]imed out|Broken pipe|Connection (closed|reset|refused)"
)


class TrainingInterruptedError(Exception):
    """A signal stopped the run, and a checkpoint to resume from is written.

    Attributes:
      status: exit status of the command, 128 + the number of the signal.
    """

    def __init__(self, message: str = "", number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.status = 128 + number


class StopRequest:
    """Records SIGINT and SIGTERM within its ``with`` block.

    A second signal ends the process at once.  A signal that the process ignored before
    stays ignored: a shell starts background jobs with SIGINT ignored.

    Attributes:
      number: first signal received; 0 before.
    """

    def __init__(self) -> None:
        self.number = 0
        self._handlers: dict[int, Any] = {}  # before the block
        self._process = 0
        self._time = 0.0

    @property
    def asked(self) -> bool:
        """True once a signal was received."""
        return self.number != 0

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _handle(self, number: int, frame: Optional[FrameType]) -> None:
        if os.getpid() != self._process:  # in a process forked within the block
            signal.signal(number, signal.SIG_DFL)
            return
        now = time.monotonic()
        is_forwarded = "TORCHELASTIC_RUN_ID" in os.environ
        if self.asked:
            may_be_copy = is_forwarded or number != self.number
            if may_be_copy and now - self._time < FORWARDING:
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.number, self._time = number, now
        logging.warning(
            "%s: stopping after this batch with a checkpoint; a second signal stops "
            "at once",
            signal.Signals(number).name,
        )
        if not is_forwarded:  # the default handler also ends a collective operation
            signal.signal(number, signal.SIG_DFL)


class PeerLostError(TrainingStoppedError):
    """Another process of the job is lost; the message has its rank and the cause."""


class PeerWatch:
    """Watches the other processes of a job within its ``with`` block.

    An error that leaves the block is sent to the others.  A connection error that the
    loss of another process caused becomes a :class:`PeerLostError` with the cause.
    """

    def __init__(
        self,
        world: World,
        heartbeat: float = HEARTBEAT,
        patience: float = PATIENCE,
    ) -> None:
        """Prepare the watch; a single process watches nothing.

        Args:
          heartbeat, patience: seconds, see the constants.
        """
        self.world, self.heartbeat, self.patience = world, heartbeat, patience
        self.others = [r for r in range(world.size) if r != world.rank]
        self._store: Any = None
        self._own_error = self._peer_error = ""
        self._is_leaving = False
        self._threads: list[threading.Thread] = []
        self._has_ended, self._has_sent = threading.Event(), threading.Event()
        self._silent_reads = 0  # since the store answered
        # Rank -> (heartbeats, reads without a new one).
        self._heartbeats = dict.fromkeys(self.others, (-1, 0))

    def __enter__(self) -> "PeerWatch":
        if not self.others:
            return self
        try:
            self._store = open_store()
        except (RuntimeError, KeyError) as e:
            logging.warning("lost processes will not be detected: no store (%s)", e)
            return self
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._run_exchange, self._run_check)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: Any, error: Optional[BaseException], trace: Any) -> None:
        self._is_leaving = True
        try:
            if self.others and error is not None:
                self._handle_error(error)
        finally:
            self._has_ended.set()
            for thread in self._threads:
                thread.join(timeout=self.heartbeat)

    def _handle_error(self, error: BaseException) -> None:
        """Raise PeerLostError for a connection error; send any other to the others."""
        is_runtime = isinstance(error, RuntimeError)
        is_own = isinstance(error, TrainingStoppedError) or not is_runtime
        if not is_own and _CONNECTION_ERROR.search(str(error)):
            raise PeerLostError(f"{self._find_cause()}; {REMEDY}") from error
        if self._threads and not isinstance(error, TrainingInterruptedError):
            self._own_error = f"{type(error).__name__}: {error}"
            self._has_sent.wait(timeout=2 * self.heartbeat)

    def _run_exchange(self) -> None:
        """Write and read heartbeats until the block ends.

        Only this thread calls the store: a call to a frozen store never returns.
        """
        while not self._has_ended.is_set():
            try:
                self._exchange()
                self._silent_reads = 0
            except RuntimeError as e:  # at the end of a job the store closes first
                logging.debug("no answer from the store: %s", e)
            # An error of this process does not wait for the next heartbeat.
            for _ in range(10):
                if self._has_ended.wait(self.heartbeat / 10):
                    return
                if self._own_error and not self._has_sent.is_set():
                    break

    def _exchange(self) -> None:
        rank = self.world.rank
        self._store.add(f"heartbeat/{rank}", 1)
        if self._own_error and not self._has_sent.is_set():
            self._store.set(f"error/{rank}", f"rank {rank}: {self._own_error}")
            self._store.add(f"has_error/{rank}", 1)
            self._has_sent.set()
        for other in self.others:
            before, reads = self._heartbeats[other]
            count = self._store.add(f"heartbeat/{other}", 0)
            self._heartbeats[other] = (count, 0 if count != before else reads + 1)
            if self._store.add(f"has_error/{other}", 0) and not self._peer_error:
                self._peer_error = self._store.get(f"error/{other}").decode()

    def _run_check(self) -> None:
        """End this process if another one is lost and no exception ends it."""
        while not self._has_ended.wait(self.heartbeat):
            self._silent_reads += 1
            if not self._find_loss():
                continue
            # Wait: the main thread may fail by itself, and a process that was frozen
            # for as long as this one may be back.
            if self._has_ended.wait(2 * self.heartbeat) or self._is_leaving:
                continue
            loss = self._find_loss()
            if not loss:
                continue
            logging.error("train: %s; %s", loss, REMEDY)
            logging.shutdown()
            os._exit(1)  # the main thread waits in C++, where no exception arrives

    def _find_loss(self) -> str:
        """Return the error of another process, or its silence; "" without either."""
        return self._peer_error or self._find_silence(self.patience)

    def _find_cause(self) -> str:
        """Return why the connection to another process broke."""
        if not self._threads:
            return "another process of the job is lost"
        for _ in range(8):
            if self._peer_error:
                return self._peer_error
            time.sleep(self.heartbeat / 2)
        return self._find_silence(2 * self.heartbeat) or (
            "the connection to another process broke, but all processes are alive"
        )

    def _find_silence(self, patience: float) -> str:
        """Return which process has been silent for ``patience`` s, or ""."""
        limit = patience / self.heartbeat
        lost = [r for r, (_, reads) in self._heartbeats.items() if reads >= limit]
        if self._silent_reads >= limit:
            who = "the process with the job's store, rank 0 or torchrun,"
        elif lost:
            who = f"rank {', '.join(map(str, lost))}"
        else:
            return ""
        return f"{who} sends no heartbeat: killed, frozen, or its machine is lost"


def open_store(timeout: float = 30.0) -> Any:
    """Open another connection to the job's key-value store.

    Args:
      timeout: seconds.
    """
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=datetime.timedelta(seconds=timeout),
    )
    return dist.PrefixStore("icefall_kd", store)
