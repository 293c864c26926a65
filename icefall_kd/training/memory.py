"""Memory probe: forward and backward on the largest batch before the first update."""

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
from icefall_kd.dataset.dataset import Loader
from icefall_kd.dataset.stream import CutStream
from icefall_kd.training.checkpoint import (
    get_rng_state,
    get_whiten_probs,
    set_rng_state,
    set_whiten_probs,
)
from icefall_kd.training.skipped import TrainingStoppedError
from icefall_kd.training.student import DistilledStudent


class OutOfMemoryError(TrainingStoppedError):
    """A batch does not fit into memory; the message has its size and a remedy."""


@contextlib.contextmanager
def explain_out_of_memory(
    batch: Mapping[str, Any], max_duration: float
) -> Iterator[None]:
    """Replace an out-of-memory error in the block by one that describes the batch.

    Args:
      batch: batch that the block computes on.
      max_duration: ``data.max_duration``, s.
    Raises:
      OutOfMemoryError: instead of the error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not _is_out_of_memory(e):
            raise
        reason = str(e).split("\n")[0][:200]
        is_single = len(batch["feature_lens"]) == 1
        raise OutOfMemoryError(
            f"out of memory for a batch of {describe_batch(batch)}. Lower "
            f"data.max_duration ({max_duration:g})"
            f"{' or remove this cut' if is_single else ''} [{reason}]"
        ) from e


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    texts = ("out of memory", "can't allocate memory")
    return any(text in str(error) for text in texts)


def describe_batch(batch: Mapping[str, Any]) -> str:
    """Return the padded duration of a batch, and the number and lengths of its cuts."""
    lens = batch["feature_lens"].tolist()
    seconds = [n * FBANK_SHIFT for n in lens]
    padded = len(lens) * max(seconds)
    shortest, longest = f"{min(seconds):.2f}", f"{max(seconds):.2f}"
    span = longest if shortest == longest else f"{shortest} to {longest}"
    return (
        f"{padded:.1f} s with padding: {len(lens)} cut{'s' if len(lens) > 1 else ''} "
        f"of {span} s, the longest {batch['cuts'][0].id}"
    )


def largest_batches(
    stream: CutStream, loader: Loader, max_duration: float, needs_text: bool
) -> Iterator[Batch]:
    """Yield the batch of the longest cuts, then that of the longest labelled cuts.

    The second is yielded only if a term needs text and the first has unlabelled cuts.
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
    stream: CutStream,
    loader: Loader,
    *,
    device: torch.device,
    autocast: Callable[[], contextlib.AbstractContextManager],
    max_duration: float,
) -> None:
    """Run forward and backward on the largest batches, without an update.

    The probe also allocates as much memory as the optimiser's two moments and the
    gradients of earlier batches (``optim.accumulate``).  It restores the random states
    and Whiten probabilities, and removes the gradients.

    Args:
      stream, loader: of the training sets.
      autocast: context of the forward pass.
      max_duration: ``data.max_duration``, s.
    Raises:
      OutOfMemoryError: if a batch does not fit.
    """
    rng_state, whiten_probs = get_rng_state(), get_whiten_probs(student.model)
    params = [p for _, p in student.trainable()]
    student.train()
    needs_text = any(term.needs_text for _, term in student.terms)
    for batch in largest_batches(stream, loader, max_duration, needs_text):
        logging.info("memory probe: training on %s", describe_batch(batch))
        clock = time.monotonic()
        with explain_out_of_memory(batch, max_duration):
            others = [torch.empty_like(p) for p in params for _ in range(3)]
            with autocast():
                loss, frames, _ = student(move_to_device(batch, device), 0)
            (loss * frames).backward()
            del loss, others
        for p in params:
            p.grad = None
        seconds = time.monotonic() - clock
        logging.info("memory probe: peak %s, %.1f s", _peak_memory(device), seconds)
    set_whiten_probs(student.model, whiten_probs)
    set_rng_state(rng_state)


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.empty_cache()
        return f"{peak / 2**30:.2f} of {total / 2**30:.0f} GiB"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux: kB
    return f"{peak / 2**30:.2f} GiB of this process"
