"""Split long audio into windows, so that memory does not depend on its duration.

The memory of full-context attention grows with the square of the duration.  Audio that
is longer than a window is split where it is quietest.  If this is not a pause, the two
windows overlap by 1 s on each side of the split, and each word comes from the window
with more context around it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from icefall_kd import ENCODER_SHIFT, SAMPLE_RATE
from icefall_kd.data.tokens import word_spans

FRAME = round(ENCODER_SHIFT * SAMPLE_RATE)  # samples; splits are between output frames
OVERLAP = 25 * FRAME  # samples, 1 s, on each side of a split within speech
PAUSE = 8  # frames, 0.32 s, of the moving average of the power
PAUSE_LEVEL = 0.01  # maximum power of a pause, relative to the mean (-20 dB)


@dataclass(frozen=True)
class Window:
    """A part of an utterance that is recognised alone.

    Attributes:
      wave: (S,) float32.
      start: first encoder output frame (40 ms) of ``wave`` in the utterance.
      first, last: frames [first, last) of the utterance; words whose last token is in
        these frames come from this window.
    """

    wave: np.ndarray
    start: int
    first: int
    last: int

    @property
    def duration(self) -> float:
        """Duration of ``wave`` in s."""
        return len(self.wave) / SAMPLE_RATE

    @property
    def is_overlapped(self) -> bool:
        """Whether another window contains a part of ``wave``."""
        end = self.start * FRAME + len(self.wave)
        return self.start < self.first or self.last * FRAME < end

    def select_tokens(
        self, pieces: Sequence[str], frames: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Return the tokens of the words that come from this window.

        Args:
          pieces: symbol of each token that was recognised in ``wave``.
          frames: encoder output frame of each token in ``wave``.
        Returns:
          indexes into ``pieces``, and the frame of each selected token in the
          utterance.
        """
        times = [self.start + frame for frame in frames]
        selected = list(range(len(times)))
        if self.is_overlapped:
            selected = []
            for begin, end in word_spans(pieces):
                word = range(begin, end + 1)
                # A language without spaces has one long word; split it at tokens.
                if (times[end] - times[begin]) * FRAME < OVERLAP:
                    selected += word if self.first <= times[end] < self.last else []
                else:
                    selected += [i for i in word if self.first <= times[i] < self.last]
        return selected, [times[i] for i in selected]


def split_windows(blocks: Iterable[np.ndarray], max_seconds: float) -> Iterator[Window]:
    """Split an utterance into windows of at most ``max_seconds``, with constant memory.

    Args:
      blocks: parts (S,) float32 of the utterance, of any length, 16 kHz.
      max_seconds: maximum duration of a window in s.
    Yields:
      windows in order; one window if the utterance is not longer than ``max_seconds``.
    """
    limit = int(min(max_seconds, 1e9) * SAMPLE_RATE) // FRAME * FRAME
    buffer: list[np.ndarray] = []
    buffered, start, first = 0, 0, 0  # in samples, frames and frames
    for block in blocks:
        for part in np.split(block, range(limit, len(block), limit)):
            buffer.append(part)
            buffered += len(part)
            while buffered > max_seconds * SAMPLE_RATE:
                wave = np.concatenate(buffer)
                split, is_pause = _find_split(wave[:limit])
                margin = 0 if is_pause else OVERLAP // FRAME
                end = (split + margin) * FRAME
                yield Window(wave[:end], start, first, start + split)
                first = start + split
                start = first - margin
                buffer = [wave[(split - margin) * FRAME :].copy()]
                buffered = len(buffer[0])
    wave = np.concatenate(buffer) if buffer else np.zeros(0, np.float32)
    yield Window(wave, start, first, start + -(-len(wave) // FRAME) + 1)


def _find_split(wave: np.ndarray) -> tuple[int, bool]:
    """Return the quietest frame in the second half, and whether it is in a pause.

    Of several equally quiet frames, return the middle of the longest run.
    """
    power = wave.reshape(-1, FRAME).var(axis=1, dtype=np.float64)  # without offset
    frames = len(power)
    # boxes[i] is the mean of frames [i, i + PAUSE); the split is at their middle
    boxes = np.lib.stride_tricks.sliding_window_view(power, PAUSE).mean(axis=1)
    begin, end = frames // 2, frames - OVERLAP // FRAME - PAUSE // 2
    candidates = boxes[begin - PAUSE // 2 : end - PAUSE // 2 + 1]
    is_quietest = np.concatenate([[False], candidates == candidates.min(), [False]])
    changes = np.flatnonzero(np.diff(is_quietest))
    run_begins, run_ends = changes[::2], changes[1::2]
    longest = int(np.argmax(run_ends - run_begins))
    middle = (run_begins[longest] + run_ends[longest] - 1) // 2
    is_pause = bool(candidates.min() <= PAUSE_LEVEL * power.mean())
    return int(begin + middle), is_pause
