"""Cuts, servers and fakes for tests of several packages."""

import contextlib
import functools
import http.server
import resource
import socket
import threading
from collections import namedtuple
from collections.abc import Iterator, Sequence
from typing import Optional

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
      texts: of each cut; None makes cuts without supervisions.
    """
    rng = np.random.default_rng(seed)
    cuts: list = []
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
    """Limit files to ``num_bytes``, so that longer writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def free_port() -> int:
    """Return an unused port of this machine."""
    with contextlib.closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


FakeTranscript = namedtuple("FakeTranscript", "text confidence")


class FakeTranscriber:
    """A recogniser that returns one text; ``num_waves`` counts its inputs."""

    def __init__(self, text="yes", fingerprint=None):
        self.text, self.num_waves = text, 0
        self._fingerprint = fingerprint or {"text": text}

    def fingerprint(self):
        return self._fingerprint

    def transcribe(self, waves):
        self.num_waves += len(waves)
        return [FakeTranscript(self.text, -0.1) for _ in waves]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves complete files and logs nothing."""

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(folder) -> Iterator[str]:
    """Yield the URL of a folder on a local HTTP server."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
