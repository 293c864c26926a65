"""How long after a word was said it is recognised.

Two delays of a word, both from the end of the word in a forced alignment and both of
the word's last token:

emission delay
    to the end of the encoder frame (40 ms) in which the token was emitted.  It is the
    model's own doing: what training with shifted targets changes, what can be compared
    between full context and streaming, and what tells whether a student waits for
    context.  It may be negative: a word can be guessed before its end.
latency
    to the time at which a stream has the audio that this frame waits for: the end of
    the chunk, the front end's look-ahead and the fbank window included.  It is what a
    user sees, but for the time of the computation and of the transport; a full-context
    decoding has none, since it waits for the end of the utterance.

A frame waits 112.5 ms if it is the last of its chunk, and 40 ms more for every frame
that follows it there: in chunks of 320 ms the latency is the larger by 252.5 ms where
words end evenly, which says more of the chunk size than of the model.

Source of mean and 90th percentile over words: Inaguma et al., Minimum latency training
strategies for streaming sequence-to-sequence ASR, 2020, arXiv:2004.05009; Yu et al.,
FastEmit, 2021, arXiv:2010.11148.

Only words that are right are counted, those that the scorer's alignment pairs with the
same word of the reference: a system that recognises more words is measured on more of
them, and where most words are wrong some pairs are chance, seconds apart.  With a beam,
the frame is where the winner emitted the token; that it won may have shown later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional

import numpy as np

from icefall_kd.core.files import Pathlike
from icefall_kd.decoding.streaming import step_time
from icefall_kd.recognition.ctm import alignment_info, load_word_times
from icefall_kd.recognition.forced_alignment import WordTimes, frame_end
from icefall_kd.recognition.options import Chunking
from icefall_kd.recognition.scoring import NO_WORD, Recognition, align_words


@dataclass(frozen=True)
class Delays:
    """Delays of the words that were recognised, in seconds.

    Attributes:
      emission: of each word, to the end of its last token's frame.
      latency: of each word, to the time of the step that gave that frame; None for a
        full-context decoding.
    """

    emission: list[float]
    latency: Optional[list[float]] = None


def chunk_time(frame: int, chunk_size: int) -> float:
    """Return the seconds of a stream after which an encoder output frame is there.

    Args:
      frame: of 40 ms.
      chunk_size: in 50 Hz frames.
    """
    return step_time(frame // (chunk_size // 2), chunk_size)


def measure_delays(
    recognitions: Sequence[Recognition],
    times: WordTimes,
    chunk_size: Optional[int] = None,
) -> Delays:
    """Return the delays of all words of a set that were recognised.

    Args:
      recognitions: with the frames of their words.
      times: of the words of each reference.
      chunk_size: of streaming, in 50 Hz frames; None: full context.
    Raises:
      ValueError: if a recognition has no frames, or another reference than ``times``.
    """
    emission, latency = [], []
    for r in recognitions:
        ends = [item.end for item in times.get(r.cut_id, [])]
        if len(r.frames) != len(r.hyp) or len(ends) != len(r.ref):
            raise ValueError(
                f"{r.cut_id}: {len(r.hyp)} words with {len(r.frames)} frames, against "
                f"{len(r.ref)} words with {len(ends)} times; each word needs one"
            )
        for end, frame in _pairs(r, ends):
            emission.append(frame_end(frame) - end)
            if chunk_size is not None:
                latency.append(chunk_time(frame, chunk_size) - end)
    return Delays(emission, latency if chunk_size is not None else None)


def _pairs(recognition: Recognition, ends: Sequence[float]):
    """Yield (end of the word, frame of its last token) of each word that is right."""
    i = j = 0
    for ref, hyp in align_words(recognition.ref, recognition.hyp):
        if ref == hyp:
            yield ends[i], recognition.frames[j]
        i += ref != NO_WORD
        j += hyp != NO_WORD


def delay_metrics(delays: Delays) -> dict[str, Optional[float]]:
    """Return what a result JSON says of delays: milliseconds, and the words counted.

    Without a word the milliseconds are None.
    """
    figures = _spread("emission_delay", delays.emission)
    if delays.latency is not None:
        figures.update(_spread("latency", delays.latency))
    return {**figures, "delay_words": len(delays.emission)}


def _spread(name: str, seconds: Sequence[float]) -> dict[str, Optional[float]]:
    """Return mean and 90th percentile, in milliseconds."""
    keys = (f"{name}_mean_ms", f"{name}_p90_ms")
    if not seconds:
        return dict.fromkeys(keys)
    told = (np.mean(seconds), np.percentile(seconds, 90))
    return {key: round(1000 * float(x), 1) for key, x in zip(keys, told)}


@dataclass(frozen=True)
class WordAlignment:
    """When each word of a set was said; without times nothing is measured.

    Attributes:
      times: of the words of each cut.
      facts: what a result JSON says of the file.
    """

    times: Optional[WordTimes] = None
    facts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Optional[Pathlike], shar_dir: Pathlike) -> "WordAlignment":
        """Read a file of bin.align; None gives an alignment without times.

        Raises:
          FileNotFoundError, ValueError: as
            :func:`icefall_kd.recognition.ctm.load_word_times`.
        """
        if path is None:
            return cls()
        return cls(load_word_times(path, shar_dir), alignment_info(path))

    @property
    def sha256(self) -> Optional[str]:
        """Return the file's hash."""
        return self.facts.get("alignment_sha256")

    def figures(
        self, recognitions: Sequence[Recognition], chunking: Optional[Chunking]
    ) -> dict[str, Optional[float]]:
        """Return how late words were recognised, as a result JSON says it."""
        if self.times is None:
            return {}
        chunk_size = chunking.chunk_size if chunking else None
        return delay_metrics(measure_delays(recognitions, self.times, chunk_size))
