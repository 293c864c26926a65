"""Emission delay and latency of recognised words.

Both start at the end of the word in a forced alignment.

emission delay
    It ends with the encoder frame (40 ms) that emitted the last token of the word.  It
    is a property of the model and can be compared between full context and streaming.
    It is negative if the model emits a word before its end.
latency
    It ends when the stream has received the audio that this frame needs: the rest of
    the chunk, the look-ahead of the front end and the fbank window.  A user also waits
    for computation and transport.  Full context has no latency, because it waits for
    the end of the utterance.

The latency of the last frame of a chunk is 112.5 ms longer than its emission delay.
Each earlier frame adds 40 ms.  For chunks of 320 ms, the mean difference is therefore
252.5 ms.  It depends on the chunk size and not on the model.

Source of mean and 90th percentile over words: Inaguma et al., Minimum latency training
strategies for streaming sequence-to-sequence ASR, 2020, arXiv:2004.05009; Yu et al.,
FastEmit, 2021, arXiv:2010.11148.

Only correct words are measured, those that the scorer aligns with an equal word of the
reference.  A system with a lower WER is therefore measured on more words.  With a high
WER, some words match by accident and have delays of seconds.  In a beam search, the
frame is that in which the hypothesis got the token, although the hypothesis may become
the best one later.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional

import numpy as np

from icefall_kd.core.files import Pathlike
from icefall_kd.decoding.streaming import step_time
from icefall_kd.recognition.ctm import alignment_info, load_alignment
from icefall_kd.recognition.forced_alignment import WordTimes, frame_end
from icefall_kd.recognition.options import Chunking
from icefall_kd.recognition.scoring import NO_WORD, Recognition, align_words


@dataclass(frozen=True)
class Delays:
    """Delays of the correct words, in seconds.

    Attributes:
      emission: emission delay of each word.
      latency: latency of each word; None for full context.
    """

    emission: list[float]
    latency: Optional[list[float]] = None


@dataclass(frozen=True)
class WordAlignment:
    """Word times of a set, to measure the delays of its decodings.

    Attributes:
      times: words of each cut; None if there is no alignment, which gives no delays.
      info: entries of a result JSON about the alignment.
    """

    times: Optional[WordTimes] = None
    info: Mapping[str, Optional[str]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Optional[Pathlike], shar_dir: Pathlike) -> "WordAlignment":
        """Read the CTM file of a set; return no times if ``path`` is None.

        Raises:
          FileNotFoundError: if the file or the set does not exist.
          ValueError: if the file is malformed or not an alignment of the set.
        """
        if path is None:
            return cls()
        return cls(load_alignment(path, shar_dir), alignment_info(path))

    def delay_metrics(
        self, recognitions: Sequence[Recognition], chunking: Optional[Chunking]
    ) -> dict[str, Optional[float]]:
        """Return :func:`delay_metrics` of a decoding; {} if there is no alignment."""
        if self.times is None:
            return {}
        chunk_size = chunking.chunk_size if chunking else None
        return delay_metrics(measure_delays(recognitions, self.times, chunk_size))


def frame_time(frame: int, chunk_size: int) -> float:
    """Return the seconds of audio after which streaming computes an encoder frame.

    Args:
      frame: number of the encoder output frame (40 ms).
      chunk_size: in 50 Hz frames.
    """
    return step_time(frame // (chunk_size // 2), chunk_size)


def measure_delays(
    recognitions: Sequence[Recognition],
    times: WordTimes,
    chunk_size: Optional[int] = None,
) -> Delays:
    """Return the delays of all correct words of a set.

    Args:
      recognitions: recognitions with ``frames``.
      times: words of each reference.
      chunk_size: in 50 Hz frames; None for full context.
    Raises:
      ValueError: if a recognition has no frames, or its reference differs from
        ``times``.
    """
    emission, latency = [], []
    for r in recognitions:
        ends = [item.end for item in times.get(r.cut_id, [])]
        if len(r.frames) != len(r.hyp) or len(ends) != len(r.ref):
            raise ValueError(
                f"{r.cut_id}: {len(r.hyp)} recognised words have {len(r.frames)} "
                f"frames, {len(r.ref)} reference words have {len(ends)} times; align "
                "and decode the set again"
            )
        for end, frame in _correct_words(r, ends):
            emission.append(frame_end(frame) - end)
            if chunk_size is not None:
                latency.append(frame_time(frame, chunk_size) - end)
    return Delays(emission, latency if chunk_size is not None else None)


def _correct_words(
    recognition: Recognition, ends: Sequence[float]
) -> Iterator[tuple[float, int]]:
    """Yield the end (s) and the frame of the last token of each correct word."""
    i = j = 0
    for ref, hyp in align_words(recognition.ref, recognition.hyp):
        if ref == hyp:
            yield ends[i], recognition.frames[j]
        i += ref != NO_WORD
        j += hyp != NO_WORD


def delay_metrics(delays: Delays) -> dict[str, Optional[float]]:
    """Return the delays as entries of a result JSON.

    The entries are mean and 90th percentile in ms, None if no word is correct, and the
    number of correct words.
    """
    metrics = _summarise("emission_delay", delays.emission)
    if delays.latency is not None:
        metrics.update(_summarise("latency", delays.latency))
    return {**metrics, "delay_words": len(delays.emission)}


def _summarise(name: str, seconds: Sequence[float]) -> dict[str, Optional[float]]:
    keys = (f"{name}_mean_ms", f"{name}_p90_ms")
    if not seconds:
        return dict.fromkeys(keys)
    values = (np.mean(seconds), np.percentile(seconds, 90))
    return {key: round(1000 * float(x), 1) for key, x in zip(keys, values)}
