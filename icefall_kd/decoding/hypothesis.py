"""What a search is asked for and what it answers."""

from dataclasses import dataclass, field
from typing import Optional

from icefall_kd.decoding.hotwords import Hotwords

MIN_WINDOW = 5.0  # s; shorter windows lose too much context


@dataclass(frozen=True)
class DecodeOptions:
    """How to search.

    Attributes:
      method: a name in :data:`icefall_kd.decoding.DECODERS`.
      beam: hypotheses kept a frame (modified_beam_search, ctc_prefix_beam_search),
        sherpa-onnx calls it max_active_paths; contexts of the predictor
        (fast_beam_search), icefall calls it max_contexts and takes 8.
      blank_penalty: subtracted from the blank's logit before anything else, >= 0.
      unk_id: id of ``<unk>``; it is treated as a blank, so it is never emitted and
        leaves the context as it was.  None: the vocabulary has none.
      hotwords: phrases to find rather than to miss (modified_beam_search).
      max_utterance: s; a longer utterance is cut into windows, unless it streams.
    """

    method: str = "greedy_search"
    beam: int = 4
    blank_penalty: float = 0.0
    unk_id: Optional[int] = None
    hotwords: Optional[Hotwords] = None
    max_utterance: float = 30.0

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise ValueError(f"beam must be at least 1, got {self.beam}")
        if self.blank_penalty < 0:
            raise ValueError(f"blank_penalty must be >= 0, got {self.blank_penalty}")
        if not self.max_utterance >= MIN_WINDOW:
            raise ValueError(
                f"max_utterance must be at least {MIN_WINDOW:g} s, got "
                f"{self.max_utterance:g} s"
            )


@dataclass
class Hypothesis:
    """A decoded sequence.

    Attributes:
      tokens: ids without blanks and without the start context.
      timestamps: the encoder output frame (40 ms each) of every token; of a CTC head
        the first of the token's frames, by the best path.
      score: log-probability in nats: of the path for greedy search, of all paths
        that merged into it for the beam, the bonuses of hotwords added.
    """

    tokens: list[int] = field(default_factory=list)
    timestamps: list[int] = field(default_factory=list)
    score: float = 0.0
