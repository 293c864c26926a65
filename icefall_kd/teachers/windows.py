"""Long utterances in overlapping windows, pieces of like length in batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from icefall_kd import SAMPLE_RATE

WINDOW = 30 * SAMPLE_RATE  # samples, the longest input Whisper was trained on
OVERLAP = 2 * SAMPLE_RATE  # samples shared by two windows of a longer utterance
SPREAD = 1.25  # of a batch's lengths at most: padding costs what audio costs


@dataclass(frozen=True)
class Piece:
    """A stretch of an utterance that a model hears at once.

    Attributes:
      row:        of the utterance in its batch.
      start, end: samples [start, end) of it.
      total:      samples of the utterance.
    """

    row: int
    start: int
    end: int
    total: int

    @property
    def samples(self) -> int:
        """Return the samples of the piece."""
        return self.end - self.start


def windows(
    num_samples: int, window: int = WINDOW, overlap: int = OVERLAP
) -> list[tuple[int, int]]:
    """Cut [0, num_samples) into windows that overlap.

    >>> windows(40 * 16000)
    [(0, 480000), (448000, 640000)]
    """
    spans, start = [], 0
    while start + window < num_samples:
        spans.append((start, start + window))
        start += window - overlap
    return spans + [(start, num_samples)]


def cut_pieces(
    wave_lens: Tensor, window: int = WINDOW, overlap: int = OVERLAP
) -> list[Piece]:
    """Return the pieces of all utterances of a batch.

    Args:
      wave_lens: (N,) int64, valid samples.
    """
    return [
        Piece(row, start, end, total)
        for row, total in enumerate(wave_lens.tolist())
        for start, end in windows(total, window, overlap)
    ]


def batch_pieces(
    pieces: Sequence[Piece],
    length: Callable[[Piece], int],
    max_samples: int,
    equal: bool = False,
) -> list[list[Piece]]:
    """Put pieces of like length together, the shortest first.

    Args:
      length:      samples of a piece as the model hears it, with what pads it.
      max_samples: of a batch, padded to its longest; one piece may exceed it.
      equal:       let only pieces of one length share a batch, otherwise those whose
                   lengths differ by a quarter.
    """
    batches: list[list[Piece]] = []
    for piece in sorted(pieces, key=length):
        last = batches[-1] if batches else []
        limit = length(last[0]) * (1.0 if equal else SPREAD) if last else 0
        if length(piece) <= min(limit, max_samples / (len(last) + 1)):
            last.append(piece)
        else:
            batches.append([piece])
    return batches


def gather(waves: Tensor, pieces: Sequence[Piece], samples: int) -> Tensor:
    """Return the audio of pieces, (len(pieces), samples), zero-padded."""
    batch = torch.zeros(len(pieces), samples, device=waves.device)
    for row, piece in enumerate(pieces):
        batch[row, : piece.samples] = waves[piece.row, piece.start : piece.end]
    return batch


def stitch(
    x: Tensor,
    lens: Sequence[int],
    pieces: Sequence[Piece],
    frame: int,
    out: Tensor,
    overlap: int = OVERLAP,
) -> None:
    """Write the frames of pieces to where they belong in their utterances.

    Of an overlap, each window gives the half that it hears more around.

    Args:
      x:     (len(pieces), T, D), frames of the pieces.
      lens:  valid frames of each.
      frame: samples from one frame to the next; divides every piece's start.
      out:   (N, T', D) of the utterances, written to.
    """
    x = x.to(out.device, out.dtype)
    half = overlap // 2 // frame
    for row, (piece, valid) in enumerate(zip(pieces, lens)):
        offset = piece.start // frame
        first = half if piece.start > 0 else 0
        last = valid if piece.end == piece.total else piece.samples // frame - half
        out[piece.row, offset + first : offset + last] = x[row, first:last]


def padded_samples(
    num_samples: int, context: float, bucket: float, frame: int, window: int = WINDOW
) -> int:
    """Return the samples that Whisper, which knows no mask, hears for a clip.

    Its own length and a little silence, rounded up so that clips of about one length
    share a batch; a function of the clip alone.

    Args:
      context: seconds of silence after the clip.
      bucket:  seconds; the result is a multiple of it, in whole frames.
      frame:   samples of a frame.
      window:  samples, at most so many.
    """
    step = max(frame, round(bucket * SAMPLE_RATE) // frame * frame)
    wanted = num_samples + round(context * SAMPLE_RATE)
    return min(window, -(-wanted // step) * step)
