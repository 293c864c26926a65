"""Stop a run on SIGINT and SIGTERM, or when another process of the job is lost.

:class:`StopRequest` records SIGINT and SIGTERM.  The run then writes a checkpoint and
exits with status 128 + signal.

:class:`PeerWatch` ends a process when another process of its job is lost.  Each process
writes a heartbeat to the job's key-value store every few seconds and reads the
heartbeats of the others.  A process that raises an error writes the message to the
store.  The other processes exit within a minute and report the cause.  Without this
watch they would wait in a collective operation for 10 minutes, the timeout of
``init_world``, if a process freezes or with NCCL.  torchrun notices only processes that
exit.

A process counts as lost after a number of reads without a new heartbeat, not after a
time.  If all processes freeze together (a suspended node, a paused container), the job
continues when it is resumed, unless the pause exceeds the timeout of a collective
operation.
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
FORWARDING_TIME = 2.0

HEARTBEAT = 2.0  # s between two heartbeats
PATIENCE = 45.0  # s without a heartbeat after which a process counts as lost
REMEDY = "start the job again: training resumes from the last checkpoint"

# Errors of gloo, NCCL and their sockets when another process does not answer.
_CONNECTION_ERROR = re.compile(
    r"gloo|NCCL|[Ss]ocket|[Tt]imed out|Broken pipe|Connection (closed|reset|refused)"
)


class TrainingInterruptedError(Exception):
    """A signal stopped the run after it wrote a checkpoint to resume from.

    Attributes:
      status: exit status of the command, 128 + the number of the signal.
    """

    def __init__(self, message: str = "", number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.status = 128 + number


class StopRequest:
    """Records SIGINT and SIGTERM within its ``with`` block.

    A second signal ends the process at once.  A signal that the process ignores before
    the block stays ignored: a shell starts background jobs with SIGINT ignored.

    Attributes:
      number: number of the first signal received; 0 if none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._handlers: dict[int, Any] = {}  # those outside the block
        self._process = 0
        self._time = 0.0

    @property
    def is_requested(self) -> bool:
        """True after a signal."""
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
        if self.is_requested:
            may_be_copy = is_forwarded or number != self.number
            if may_be_copy and now - self._time < FORWARDING_TIME:
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.number, self._time = number, now
        logging.warning(
            "%s: stopping after this update with a checkpoint; a second signal stops "
            "at once",
            signal.Signals(number).name,
        )
        if not is_forwarded:  # the default handler also ends a collective operation
            signal.signal(number, signal.SIG_DFL)


class PeerLostError(TrainingStoppedError):
    """Another process of the job is lost; the message has its rank and the cause."""


class PeerWatch:
    """Watches the other processes of a job within its ``with`` block.

    An error that leaves the block is sent to the other processes.  A connection error
    is replaced by a :class:`PeerLostError`, which names the lost process or its error.
    """

    def __init__(
        self,
        world: World,
        heartbeat: float = HEARTBEAT,
        patience: float = PATIENCE,
    ) -> None:
        """Prepare the watch; a job of one process needs none.

        Args:
          heartbeat: seconds between two heartbeats.
          patience: seconds without a heartbeat after which a process counts as lost.
        """
        self.world, self.heartbeat, self.patience = world, heartbeat, patience
        self.others = [r for r in range(world.size) if r != world.rank]
        self._store: Any = None
        self._own_error = self._peer_error = ""
        self._is_leaving = False
        self._threads: list[threading.Thread] = []
        self._has_ended, self._has_sent = threading.Event(), threading.Event()
        self._silent_reads = 0  # since the store answered
        # Rank -> (heartbeats, reads since the last new heartbeat).
        self._heartbeats = dict.fromkeys(self.others, (-1, 0))

    def __enter__(self) -> "PeerWatch":
        if not self.others:
            return self
        try:
            self._store = open_store()
        except (RuntimeError, KeyError) as e:
            logging.warning("cannot detect lost processes: no store of the job (%s)", e)
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
        """Raise PeerLostError for a connection error; send others to the peers."""
        is_runtime = isinstance(error, RuntimeError)
        is_own = isinstance(error, TrainingStoppedError) or not is_runtime
        if not is_own and _CONNECTION_ERROR.search(str(error)):
            raise PeerLostError(f"{self._find_cause()}; {REMEDY}") from error
        if self._threads and not isinstance(error, TrainingInterruptedError):
            self._own_error = f"{type(error).__name__}: {error}"
            self._has_sent.wait(timeout=2 * self.heartbeat)

    def _run_exchange(self) -> None:
        """Write and read heartbeats until the block ends.

        No other thread calls the store, because a call to a frozen store never returns.
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
        """Exit if another process is lost and the main thread raises no exception."""
        while not self._has_ended.wait(self.heartbeat):
            self._silent_reads += 1
            if not self._find_failure():
                continue
            # Wait: the main thread may raise an exception, and a process that was
            # frozen together with this one may write heartbeats again.
            if self._has_ended.wait(2 * self.heartbeat) or self._is_leaving:
                continue
            failure = self._find_failure()
            if not failure:
                continue
            logging.error("train: %s; %s", failure, REMEDY)
            logging.shutdown()
            os._exit(1)  # the main thread waits in C++, where no exception arrives

    def _find_failure(self) -> str:
        """Return the error of another process, or that it is silent; "" otherwise."""
        return self._peer_error or self._find_silent_peer(self.patience)

    def _find_cause(self) -> str:
        """Return why the connection to another process broke."""
        if not self._threads:
            return "another process of the job is lost"
        for _ in range(8):
            if self._peer_error:
                return self._peer_error
            time.sleep(self.heartbeat / 2)
        return self._find_silent_peer(2 * self.heartbeat) or (
            "the connection to another process broke, but all processes are alive"
        )

    def _find_silent_peer(self, patience: float) -> str:
        """Return which process sent no heartbeat for ``patience`` seconds, or ""."""
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
      timeout: seconds that a call waits for the store.
    Raises:
      KeyError: without MASTER_ADDR and MASTER_PORT in the environment.
      RuntimeError: if the store does not answer.
    """
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=datetime.timedelta(seconds=timeout),
    )
    return dist.PrefixStore("icefall_kd", store)
