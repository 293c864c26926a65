"""Fakes that tests of several rooms share."""

import contextlib
import resource
import socket
from typing import Iterator, List, Optional, Sequence

import numpy as np
import soundfile
from lhotse import CutSet, Recording, SupervisionSegment

from icefall_kd import SAMPLE_RATE


def noise_cuts(
    directory,
    durations: Sequence[float],
    texts: Optional[Sequence[str]] = None,
    seed: int = 0,
) -> CutSet:
    """Return cuts of quiet noise, stored as flac in ``directory``.

    Args:
      durations: of each cut, in seconds.
      texts: of each cut; None gives cuts without supervision.
    """
    rng = np.random.default_rng(seed)
    cuts: List = []
    for i, duration in enumerate(durations):
        path = directory / f"noise-{i}.flac"
        samples = 0.05 * rng.standard_normal(round(duration * SAMPLE_RATE))
        soundfile.write(path, samples.astype(np.float32), SAMPLE_RATE)
        cut = Recording.from_file(path, recording_id=f"noise-{i}").to_cut()
        cut.id = f"noise-{i}"
        if texts is not None:
            cut.supervisions = [
                SupervisionSegment(
                    id=cut.id,
                    recording_id=cut.id,
                    start=0.0,
                    duration=cut.duration,
                    text=texts[i],
                )
            ]
        cuts.append(cut)
    return CutSet.from_cuts(cuts)


@contextlib.contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """Let the system refuse what makes a file longer, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with contextlib.closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
