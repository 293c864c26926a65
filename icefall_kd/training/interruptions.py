"""A request to stop: Ctrl-C or SIGTERM becomes a checkpoint and an exit status.

Keeps the processes of a job from waiting for one that is gone.

Each process gives a sign of life every few seconds and looks for the next one's, in a
key-value store that all of them reach.  One that raises an error leaves its message
there.  So all others end soon and say why, also where the collective operation they are
in would wait for long: beside a frozen process, or with NCCL.  torchrun notices only a
process that has ended, and the collective operations wait for the 10 minutes that
``init_world`` sets.

Time counts only while this process runs.  A job that is frozen as a whole (a suspended
node, a paused container) finds nobody lost when it wakes: each process counts how often
itself has looked in vain.  A pause that is longer than the time limit of the collective
operations ends it all the same, through that limit.
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
from icefall_kd.training.faults import TrainingStoppedError

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


BEAT = 2.0  # s between two signs of life
PATIENCE = 45.0  # s of looking in vain, after which a process counts as lost
REMEDY = "start the job again: training goes on from the last checkpoint"

# What gloo, NCCL and their sockets say when another process does not answer.
_LOST = re.compile(
    r"gloo|NCCL|[Ss]ocket|[Tt]imed out|Broken pipe|Connection (closed|reset|refused)"
)


class PeerLostError(TrainingStoppedError):
    """Another process of the job is gone; the message says which one and why."""


class Peers:
    """Watches the other processes within its ``with`` block.

    An error that leaves the block is told to the others.  One that comes from the end
    of another process is replaced by a :class:`PeerLostError` that names the cause.
    """

    def __init__(
        self,
        world: World,
        store: Any = None,
        beat: float = BEAT,
        patience: float = PATIENCE,
    ) -> None:
        """Prepare to watch; a process that is alone watches nobody.

        Args:
          store: torch.distributed's, for this object alone; None connects to that of
            the job.
          beat, patience: s, see the constants.
        """
        self.world, self.beat, self.patience = world, beat, patience
        self.others = [r for r in range(world.size) if r != world.rank]
        self._store = store
        self._own_words = self._words = ""
        self._leaving = False
        self._threads: list[threading.Thread] = []
        self._ended, self._told = threading.Event(), threading.Event()

    def __enter__(self) -> "Peers":
        if not self.others:
            return self
        try:
            self._store = self._store or open_store()
        except (RuntimeError, KeyError) as e:
            logging.warning("no store to watch the other processes by: %s", e)
            return self
        self._unanswered = 0  # looks since the store answered
        self._beats = dict.fromkeys(self.others, (-1, 0))  # count, looks without a new
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._exchange, self._judge)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: Any, error: Optional[BaseException], trace: Any) -> None:
        self._leaving = True
        try:
            if self.others and error is not None:
                self._explain(error)
        finally:
            self._ended.set()
            for thread in self._threads:
                thread.join(timeout=self.beat)

    def _explain(self, error: BaseException) -> None:
        ours = isinstance(error, TrainingStoppedError) or not isinstance(
            error, RuntimeError
        )
        if not ours and _LOST.search(str(error)):
            raise PeerLostError(f"{self._cause()}; {REMEDY}") from error
        if self._threads and not isinstance(error, TrainingInterruptedError):
            self._own_words = f"{type(error).__name__}: {error}"
            self._told.wait(timeout=2 * self.beat)

    def _exchange(self) -> None:
        """Give signs of life and look for those of the others.

        Nothing else speaks to the store: beside a frozen one a call never ends.
        """
        while not self._ended.is_set():
            try:
                self._speak_and_listen()
                self._unanswered = 0
            except RuntimeError as e:  # at the end of a job the store is gone first
                logging.debug("no answer from the store: %s", e)
            # An error of our own must not wait for the next beat.
            for _ in range(10):
                if self._ended.wait(self.beat / 10):
                    return
                if self._own_words and not self._told.is_set():
                    break

    def _speak_and_listen(self) -> None:
        rank = self.world.rank
        self._store.add(f"beat/{rank}", 1)
        if self._own_words and not self._told.is_set():
            self._store.set(f"words/{rank}", f"rank {rank}: {self._own_words}")
            self._store.add(f"gone/{rank}", 1)
            self._told.set()
        for other in self.others:
            before, looks = self._beats[other]
            count = self._store.add(f"beat/{other}", 0)
            self._beats[other] = (count, 0 if count != before else looks + 1)
            if self._store.add(f"gone/{other}", 0) and not self._words:
                self._words = self._store.get(f"words/{other}").decode()

    def _judge(self) -> None:
        """End this process when another one is lost and nothing else ends it."""
        while not self._ended.wait(self.beat):
            self._unanswered += 1
            if not self._trouble():
                continue
            # The main thread comes first, where its operation fails by itself; and a
            # process that was frozen for as long may be back.
            if self._ended.wait(2 * self.beat) or self._leaving:
                continue
            trouble = self._trouble()
            if not trouble:
                continue
            logging.error("train: %s; %s", trouble, REMEDY)
            logging.shutdown()
            os._exit(1)  # it waits in C++, where no exception reaches it

    def _trouble(self) -> str:
        return self._words or self._silence(self.patience)

    def _cause(self) -> str:
        """Return which process is gone, with its last words if it left some."""
        if not self._threads:
            return "another process of the job is gone"
        for _ in range(8):
            if self._words:
                return self._words
            time.sleep(self.beat / 2)
        silence = self._silence(2 * self.beat)
        return silence or "the connection to another process broke, yet all are alive"

    def _silence(self, patience: float) -> str:
        """Return who has been silent for longer than ``patience`` s, "" if nobody."""
        enough = patience / self.beat
        lost = [r for r, (_, looks) in self._beats.items() if looks >= enough]
        if self._unanswered >= enough:
            who = "the process that holds the job's store, rank 0 or torchrun,"
        elif lost:
            who = f"rank {', '.join(map(str, lost))}"
        else:
            return ""
        return f"{who} gives no sign of life: killed, frozen, or its machine is lost"


def open_store(timeout: float = 30.0) -> Any:
    """Connect once more to the store that the processes of the job met at."""
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=datetime.timedelta(seconds=timeout),
    )
    return dist.PrefixStore("icefall_kd", store)
