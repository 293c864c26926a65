"""Finds out before the first update whether the costliest batch fits into memory."""

import contextlib
import logging
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lhotse import CutSet

from icefall_kd import FBANK_SHIFT
from icefall_kd.core.frames import Batch, move_to_device
from icefall_kd.dataset.loader import Loader
from icefall_kd.dataset.stream import CutStream
from icefall_kd.training.faults import TrainingStoppedError
from icefall_kd.training.state import (
    regulariser_state,
    restore_regularisers,
    restore_rng,
    rng_state,
)
from icefall_kd.training.student import DistilledStudent


class OutOfMemory(TrainingStoppedError):
    """A batch does not fit; the message names it and the remedy."""


@contextlib.contextmanager
def explaining_memory(batch: Mapping[str, Any], max_duration: float) -> Iterator[None]:
    """Give an error for lack of memory the batch's size and the remedy.

    Args:
      batch: what is computed on within the block.
      max_duration: of batches, s, as configured.
    Raises:
      OutOfMemory: instead of the error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not _is_lack_of_memory(e):
            raise
        reason = str(e).split("\n")[0][:200]
        raise OutOfMemory(
            f"out of memory for a batch of {describe(batch)}; lower "
            f"data.max_duration ({max_duration:g}){_single(batch)} [{reason}]"
        ) from e


def describe(batch: Mapping[str, Any]) -> str:
    """Return a batch's duration with padding, its cuts' number and lengths."""
    lens = batch["feature_lens"].tolist()
    seconds = [n * FBANK_SHIFT for n in lens]
    padded = len(lens) * max(seconds)
    return (
        f"{padded:.1f} s with padding: {len(lens)} cuts of {min(seconds):.2f} to "
        f"{max(seconds):.2f} s, the longest {batch['cuts'][0].id}"
    )


def costliest_batches(
    stream: CutStream, loader: Loader, max_duration: float, needs_text: bool
) -> Iterator[Batch]:
    """Yield the batch of the longest cuts, and that of the longest with a transcript.

    The second only if a term needs text and the first has cuts without.
    """
    for labelled in (False, True):
        longest = stream.longest(max(1, int(max_duration)), labelled)
        if not longest:
            return
        count = max(1, int(max_duration // longest[0][0]))
        cuts = stream.fetch([key for _, key in longest[:count]])
        yield loader.load(CutSet.from_cuts(cuts))
        if not needs_text or all(cut.supervisions for cut in cuts):
            return


def probe_memory(
    student: DistilledStudent,
    batches: Iterator[Batch],
    *,
    device: torch.device,
    autocast: Callable[[], contextlib.AbstractContextManager],
    max_duration: float,
) -> None:
    """Go forward and backward on each of ``batches``, and leave no trace of it.

    The student with its heads and all terms is used as in training, beside as much
    memory as the optimiser will take.  No update is made; random states, gradients
    and regularisers are afterwards what they were.

    Raises:
      OutOfMemory: if a batch does not fit.
    """
    random_states, regularisers = rng_state(), regulariser_state(student.model)
    params = [p for _, p in student.trainable()]
    student.train()
    for batch in batches:
        logging.info("memory probe: training on %s", describe(batch))
        clock = time.monotonic()
        with explaining_memory(batch, max_duration):
            moments = [torch.empty_like(p) for p in params for _ in range(2)]
            with autocast():
                loss, frames, _ = student(move_to_device(batch, device), 0)
            (loss * frames).backward()
            del loss, moments
        for p in params:
            p.grad = None
        seconds = time.monotonic() - clock
        logging.info("memory probe: %s in %.1f s", _peak(device), seconds)
    restore_regularisers(student.model, regularisers)
    restore_rng(random_states)


def _peak(device: torch.device) -> str:
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.empty_cache()
        return f"{peak / 2**30:.2f} of {total / 2**30:.0f} GiB at most"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux: kB
    return f"{peak / 2**30:.2f} GiB of this process at most"


def _is_lack_of_memory(error: BaseException) -> bool:
    kinds = (MemoryError, torch.cuda.OutOfMemoryError)
    text = str(error)
    return isinstance(error, kinds) or any(
        words in text for words in ("out of memory", "can't allocate memory")
    )


def _single(batch: Mapping[str, Any]) -> str:
    if len(batch["feature_lens"]) > 1:
        return ""
    return ", or leave this cut out, which is a batch of its own"
