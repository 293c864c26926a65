"""A hint for the learning rate, from the duration of a batch."""

REFERENCE_LR = 0.045  # icefall's, of ScaledAdam ...
REFERENCE_SECONDS = 4000.0  # ... for 4 processes with max_duration 1000
EXPONENT = 0.5


def suggested_lr(batch_seconds: float) -> float:
    """Return ``base_lr`` for batches of so many s of audio, over all processes.

    It grows with the square root of the batch, as is right for optimisers that divide
    by the root of the mean squared gradient.  Source: Malladi et al., On the SDEs and
    scaling rules for adaptive gradient algorithms, 2022, arXiv:2205.10287.  That was
    not shown for ScaledAdam, and small batches have been trained well with more.
    """
    return REFERENCE_LR * (batch_seconds / REFERENCE_SECONDS) ** EXPONENT


def lr_hint(base_lr: float, max_duration: float, num_processes: int) -> str:
    """Return the hint as a line for the log.

    Args:
      max_duration: s of audio in a batch of one process.
    """
    seconds = max_duration * num_processes
    return (
        f"learning rate: base_lr is {base_lr:g}, batches are of {seconds:g} s; the "
        f"square-root rule from {REFERENCE_LR} at {REFERENCE_SECONDS:g} s gives "
        f"{suggested_lr(seconds):.2g}. A hint for runs that are unstable or slow to "
        "learn; nothing was changed"
    )
