"""Batches of an epoch, grouped into updates of the weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Optional

from torch import Tensor

from icefall_kd import FBANK_SHIFT
from icefall_kd.core.distributed import World
from icefall_kd.core.frames import Batch, move_to_device
from icefall_kd.dataset.dataset import Loader
from icefall_kd.distill.term import TermOutput
from icefall_kd.training.checkpoint import get_rng_state, set_rng_state


@dataclass(frozen=True)
class TrainedBatch:
    """A batch whose gradients belong to the next update.

    Attributes:
      number: of the batch in its epoch, counted from 1.
      batch: its "cuts" and "feature_lens".
      loss: scalar, nats per student frame.
      frames: number of student frames.
      outputs: term name -> its output, detached.
    """

    number: int
    batch: Batch
    loss: Tensor
    frames: int
    outputs: Mapping[str, TermOutput]

    @property
    def seconds(self) -> float:
        """Duration of the audio in seconds."""
        return float(self.batch["feature_lens"].sum()) * FBANK_SHIFT


class UpdateBatches:
    """Reads the batches of an epoch, equally many on all ranks.

    Attributes:
      loader: of this process.
    """

    def __init__(self, loader: Loader, world: World, accumulate: int) -> None:
        """Store the options.

        Args:
          accumulate: batches of each process for one update.
        """
        self.loader, self.world, self.accumulate = loader, world, accumulate
        self._pending_rng: Optional[dict[str, Any]] = None  # until the data is open

    def get_rng_state(self) -> dict[str, Any]:
        """Return the random state with which training continues."""
        return self._pending_rng or get_rng_state()

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Set the random state of a checkpoint, once the data is open."""
        self._pending_rng = state

    def read(self, epoch: int, is_resumed: bool) -> Iterator[tuple[Batch, bool]]:
        """Yield the rest of an epoch.

        Only within an update is the next batch read ahead, so that a checkpoint after
        the update has the position of the loader.

        Args:
          epoch: counted from 0.
          is_resumed: whether the loader continues within the epoch.
        Yields:
          A batch on the device, and whether it is the last one of an update.
        """
        self.loader.sampler.set_epoch(epoch)
        batches = iter(self.loader)
        if not is_resumed:
            self._restore_rng()
        batch, count = self._next_batch(batches), 0
        while batch is not None:
            moved, count = move_to_device(batch, self.world.device), count + 1
            if count == self.accumulate:
                yield moved, True
                batch, count = self._next_batch(batches), 0
            else:
                batch = self._next_batch(batches)
                yield moved, batch is None

    def _next_batch(self, batches: Iterator[Batch]) -> Optional[Batch]:
        """Return the next batch, None if a process has none."""
        batch = next(batches, None)
        # Opening the loader draws a number that the saved state already drew, so the
        # state of a resumed epoch is restored after the first batch.
        self._restore_rng()
        return None if self.world.any(batch is None) else batch

    def _restore_rng(self) -> None:
        if self._pending_rng is not None:
            set_rng_state(self._pending_rng)
            self._pending_rng = None
