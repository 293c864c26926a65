"""What a search is asked for and what it answers.

What every frame-synchronous search shares, and every one over the transducer.

The searches follow sherpa-onnx, so that a file decoded here and a file decoded by
the deployed recogniser read the same: the context starts as ``-1, ..., -1, 0`` (the
predictor reads -1 as a zero embedding), a frame gives at most one symbol, and
``<unk>`` counts as a blank.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Optional

import torch
from torch import Tensor, nn

from icefall_kd import BLANK_ID
from icefall_kd.decoding.hotwords import Hotwords
from icefall_kd.transducer.checkpoint import check_parts
from icefall_kd.transducer.model import NO_TOKEN

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


def start_context(batch_size: int, context_size: int, device: torch.device) -> Tensor:
    """Return the (N, context_size) int64 ids that the predictor reads first."""
    context = torch.full(
        (batch_size, context_size), NO_TOKEN, dtype=torch.int64, device=device
    )
    context[:, -1] = BLANK_ID
    return context


class Search(ABC):
    """A search over N utterances that can be continued chunk after chunk.

    The utterances are the rows, the longest first: when the shorter ones have ended,
    the rows that go on are a prefix, and nothing is computed for the others.

    Attributes:
      head: of the student, in :data:`icefall_kd.transducer.checkpoint.HEADS`.
      uses_beam: whether ``options.beam`` matters.
      packages: that it imports.
      uses_hotwords: whether it knows ``options.hotwords``; else it refuses them.
    """

    head: str
    packages: tuple[str, ...] = ()
    uses_beam = False
    uses_hotwords = False

    def __init__(self, model: nn.Module, batch_size: int, options: DecodeOptions):
        """Start N empty hypotheses.

        Args:
          model: has the parts of the head, in eval mode.
          batch_size: N.
          options: see :class:`DecodeOptions`.
        Raises:
          ValueError: if the model lacks the head, or the search takes no hotwords.
        """
        check_parts(model, self.head)
        if options.hotwords is not None and not self.uses_hotwords:
            raise ValueError(
                f"{options.method} knows no hotwords; take modified_beam_search"
            )
        self.options = options
        self.batch_size = batch_size

    def advance(self, encoder_out: Tensor, lens: Tensor) -> None:
        """Consume the next frames of the first n rows.

        Args:
          encoder_out: (n, T, D) float32, n <= N.
          lens: (n,) int64, valid frames, not increasing.
        Raises:
          ValueError: if the shapes disagree or the lengths increase.
        """
        n, num_frames = encoder_out.shape[:2]
        ends = lens.tolist()
        if n > self.batch_size or len(ends) != n or max(ends, default=0) > num_frames:
            raise ValueError(
                f"encoder_out {tuple(encoder_out.shape)} and lens {ends} do not fit "
                f"a search over {self.batch_size} rows"
            )
        if ends != sorted(ends, reverse=True):
            raise ValueError(f"the longest utterance must come first, got {ends}")
        projected = self._project(encoder_out)
        for t in range(num_frames):
            active = sum(end > t for end in ends)
            if active == 0:
                break
            self._step(projected[:active, t])

    @abstractmethod
    def _project(self, encoder_out: Tensor) -> Tensor:
        """Return what :meth:`_step` reads of (n, T, D), all frames at once."""

    @abstractmethod
    def _step(self, frame: Tensor) -> None:
        """Consume one projected frame of the first n rows."""

    def finish(self) -> None:  # noqa: B027, most searches have nothing to do
        """Take notice that nothing follows; whole utterances end so, streams do not."""

    @abstractmethod
    def hypotheses(self) -> list[Hypothesis]:
        """Return the best hypothesis of each of the N rows so far."""


class TransducerSearch(Search):
    """A search over predictor and joiner."""

    head = "transducer"

    def __init__(self, model: nn.Module, batch_size: int, options: DecodeOptions):
        super().__init__(model, batch_size, options)
        self.decoder = model.decoder
        self.joiner = model.joiner
        self.device = next(model.joiner.parameters()).device

    def _project(self, encoder_out: Tensor) -> Tensor:
        return self.joiner.encoder_proj(encoder_out)

    def _predict(self, context: Tensor) -> Tensor:
        """Return the projected predictor output (M, D) of (M, context_size) ids."""
        out = self.decoder(context, need_pad=False)
        return self.joiner.decoder_proj(out.squeeze(1))

    def _logits(self, encoder_frame: Tensor, predicted: Tensor) -> Tensor:
        """Join (M, D) with (M, D) into (M, V) logits, the blank's penalised."""
        logits = self.joiner(encoder_frame, predicted, project_input=False)
        if self.options.blank_penalty:
            logits[:, BLANK_ID] -= self.options.blank_penalty
        return logits

    def _is_symbol(self, tokens: Tensor) -> Tensor:
        """Return where ``tokens`` holds something to emit."""
        emits = tokens != BLANK_ID
        if self.options.unk_id is not None:
            emits = emits & (tokens != self.options.unk_id)
        return emits


def collect(scores: Tensor, emitted: Sequence[Tensor]) -> list[Hypothesis]:
    """Return what rows with one hypothesis each have emitted.

    Args:
      scores: (N,) of the hypotheses.
      emitted: a frame each, (n,) ids or ``NO_TOKEN``.
    """
    found = [Hypothesis(score=score) for score in scores.tolist()]
    for frame, tokens in enumerate(emitted):
        for row, token in enumerate(tokens.tolist()):
            if token != NO_TOKEN:
                found[row].tokens.append(token)
                found[row].timestamps.append(frame)
    return found
