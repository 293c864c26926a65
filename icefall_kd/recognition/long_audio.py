"""Long audio in windows: whole-utterance recognition with flat memory.

The attention of an encoder over a whole utterance needs memory that grows with the
square of its length.  Longer audio is cut where it is quietest.  A cut in a pause is
clean.  Where no pause is found, two windows overlap, and each word is taken from the
window that has more context around it.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from icefall_kd import ENCODER_SHIFT, SAMPLE_RATE
from icefall_kd.data.tokens import word_spans
from icefall_kd.decoding.search import DecodeOptions

FRAME = round(ENCODER_SHIFT * SAMPLE_RATE)  # samples; cuts fall between output frames
OVERLAP = 25 * FRAME  # samples, 1 s, on each side of a cut within speech
PAUSE = 8  # frames, 0.32 s, over which loudness is averaged
PAUSE_LEVEL = 0.01  # of the window's mean power (-20 dB): at most this is a pause


def add_max_utterance(parser: argparse.ArgumentParser) -> None:
    """Add the option for the length of the windows to a command."""
    parser.add_argument(
        "--max-utterance",
        type=float,
        default=DecodeOptions.max_utterance,
        help="maximum duration in s to recognise as a whole; longer audio is cut into "
        "windows in pauses, unless it streams",
    )


@dataclass(frozen=True)
class Window:
    """A stretch of an utterance that is recognised on its own.

    Attributes:
      wave: (S,) float32.
      start: encoder frame (40 ms) of the utterance at which ``wave`` begins.
      first, last: words whose last token is emitted in frames [first, last) of the
        utterance belong to this window.
    """

    wave: np.ndarray
    start: int
    first: int
    last: int

    @property
    def duration(self) -> float:
        """Return the duration of ``wave`` in s."""
        return len(self.wave) / SAMPLE_RATE

    @property
    def is_overlapped(self) -> bool:
        """Return whether a neighbour covers a part of ``wave``, too."""
        return self.start < self.first or self.last * FRAME < (
            self.start * FRAME + len(self.wave)
        )

    def place_tokens(
        self, pieces: Sequence[str], frames: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Return which tokens belong to the window, and their frames of the utterance.

        Args:
          pieces: symbols of the window's tokens.
          frames: encoder frame of each, counted from the start of ``wave``.
        Returns:
          indexes into ``pieces``, and a frame of the utterance for each of them.
        """
        times = [self.start + frame for frame in frames]
        kept = list(range(len(times)))
        if self.is_overlapped:
            kept = []
            for begin, end in word_spans(pieces):
                word = range(begin, end + 1)
                # A language without spaces has no words: its tokens count singly.
                if (times[end] - times[begin]) * FRAME < OVERLAP:
                    kept += word if self.first <= times[end] < self.last else []
                else:
                    kept += [i for i in word if self.first <= times[i] < self.last]
        return kept, [times[i] for i in kept]


def cut_windows(blocks: Iterable[np.ndarray], max_seconds: float) -> Iterator[Window]:
    """Cut an utterance into windows of at most ``max_seconds``, in flat memory.

    Args:
      blocks: the utterance, in parts (S,) float32 of any length, 16 kHz.
      max_seconds: an utterance that is not longer gives one window.
    Yields:
      windows in order.
    """
    limit = int(min(max_seconds, 1e9) * SAMPLE_RATE) // FRAME * FRAME
    held: list[np.ndarray] = []
    count, start, first = 0, 0, 0  # samples held, frames of the utterance
    for block in blocks:
        for part in np.split(block, range(limit, len(block), limit)):
            held.append(part)
            count += len(part)
            while count > max_seconds * SAMPLE_RATE:
                wave = np.concatenate(held)
                cut, is_pause = _quietest(wave[:limit])
                margin = 0 if is_pause else OVERLAP // FRAME
                yield Window(wave[: (cut + margin) * FRAME], start, first, start + cut)
                first = start + cut
                start = first - margin
                held = [wave[(cut - margin) * FRAME :].copy()]
                count = len(held[0])
    wave = np.concatenate(held) if held else np.zeros(0, np.float32)
    yield Window(wave, start, first, start + -(-len(wave) // FRAME) + 1)


def _quietest(wave: np.ndarray) -> tuple[int, bool]:
    """Return the frame in the later half at which to cut, and whether it is in a pause.

    Of equally quiet places the middle of the longest run is taken.
    """
    power = wave.reshape(-1, FRAME).var(axis=1, dtype=np.float64)  # without offset
    frames = len(power)
    # Box i covers frames [i, i + PAUSE): a cut at its middle.
    boxes = np.lib.stride_tricks.sliding_window_view(power, PAUSE).mean(axis=1)
    begin, end = frames // 2, frames - OVERLAP // FRAME - PAUSE // 2
    part = boxes[begin - PAUSE // 2 : end - PAUSE // 2 + 1]
    is_quietest = np.concatenate([[False], part == part.min(), [False]])
    changes = np.flatnonzero(np.diff(is_quietest))
    run_begins, run_ends = changes[::2], changes[1::2]
    longest = int(np.argmax(run_ends - run_begins))
    place = (run_begins[longest] + run_ends[longest] - 1) // 2
    return int(begin + place), bool(part.min() <= PAUSE_LEVEL * power.mean())
