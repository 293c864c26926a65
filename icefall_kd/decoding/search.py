"""Decoding options, hypotheses, and the base classes of all frame-synchronous searches.

PyTorch and sherpa-onnx return the same tokens, because the searches follow the rules of
sherpa-onnx.  The context starts as ``-1, ..., -1, 0``; the predictor maps -1 to a zero
embedding.  A frame emits at most one symbol.  ``<unk>`` counts as a blank.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Optional

import torch
from torch import Tensor, nn

from icefall_kd import BLANK_ID
from icefall_kd.decoding.hlg import DecodingGraph
from icefall_kd.decoding.hotwords import Hotwords
from icefall_kd.transducer.checkpoint import check_parts
from icefall_kd.transducer.model import NO_TOKEN

MIN_WINDOW = 5.0  # s; shorter windows lose too much context
# Searches compare hypotheses by 64-bit hashes of their tokens.  The factor is Knuth's
# constant.  It is odd, so that a product modulo 2^64 loses no bit.
HASH_FACTOR = -7046029254386353131


@dataclass(frozen=True)
class DecodeOptions:
    """Options of a search.

    Attributes:
      method: a name in :data:`icefall_kd.decoding.DECODERS`.
      beam: hypotheses kept per frame (modified_beam_search, ctc_prefix_beam_search);
        sherpa-onnx: ``max_active_paths``, icefall: ``beam_size``.  For
        fast_beam_search, contexts kept per frame; icefall: ``max_contexts``.
      blank_penalty: value >= 0 that is subtracted from the blank's logit.
      unk_id: id of ``<unk>``, which is treated as a blank; None if the vocabulary has
        no ``<unk>``.
      hotwords: phrases that modified_beam_search prefers.
      graph: words and language model of ctc_hlg.
      max_utterance: in s; longer utterances are split into windows, except in
        streaming.
    """

    method: str = "greedy_search"
    beam: int = 4
    blank_penalty: float = 0.0
    unk_id: Optional[int] = None
    hotwords: Optional[Hotwords] = None
    graph: Optional[DecodingGraph] = None
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
    """A decoded token sequence.

    Attributes:
      tokens: ids, without blanks and without the start context.
      timestamps: encoder output frame (40 ms) of each token; for a CTC head, the
        token's first frame in the best path.
      score: log-probability in nats: of the path in greedy search, of all merged paths
        in a beam search, plus the bonuses of hotwords or the weights of the graph.
    """

    tokens: list[int] = field(default_factory=list)
    timestamps: list[int] = field(default_factory=list)
    score: float = 0.0


class Search(ABC):
    """A search over N utterances, which may arrive in chunks.

    The rows of the batch are sorted by length, the longest first.  The n rows that are
    not finished are therefore the first n, and finished rows cost no computation.

    Attributes:
      head: a key of :data:`icefall_kd.transducer.checkpoint.HEADS`.
      packages: optional packages that the search imports.
      uses_beam: whether the search reads ``options.beam``.
      uses_hotwords: whether the search supports ``options.hotwords``.
      uses_graph: whether the search needs ``options.graph``.
    """

    head: str
    packages: tuple[str, ...] = ()
    uses_beam = False
    uses_hotwords = False
    uses_graph = False

    def __init__(self, model: nn.Module, batch_size: int, options: DecodeOptions):
        """Start N empty hypotheses.

        Args:
          model: in eval mode, with the parts of the head.
          batch_size: N.
        Raises:
          ValueError: if the model lacks the head, hotwords are not supported, or a
            graph is missing or not supported.
        """
        check_parts(model, self.head)
        if options.hotwords is not None and not self.uses_hotwords:
            raise ValueError(
                f"--hotwords: {options.method} does not support hotwords; use "
                "--method modified_beam_search"
            )
        check_graph(options, self.uses_graph)
        self.options = options
        self.batch_size = batch_size

    def advance(self, encoder_out: Tensor, lens: Tensor) -> None:
        """Process the next frames of the first n rows.

        Args:
          encoder_out: (n, T, D) float32, n <= N.
          lens: (n,) int64, valid frames, in descending order.
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
            raise ValueError(f"lens must be in descending order, got {ends}")
        projected = self._project(encoder_out)
        for t in range(num_frames):
            active = sum(end > t for end in ends)
            if active == 0:
                break
            self._step(projected[:active, t])

    @abstractmethod
    def _project(self, encoder_out: Tensor) -> Tensor:
        """Return the input of :meth:`_step` for all frames of (n, T, D)."""

    @abstractmethod
    def _step(self, frame: Tensor) -> None:
        """Process one projected frame of the first n rows."""

    def finish(self) -> None:  # noqa: B027, most searches have nothing to do
        """Finalise the scores after the last frame of complete utterances."""

    @abstractmethod
    def hypotheses(self) -> list[Hypothesis]:
        """Return the current best hypothesis of each of the N rows."""


def check_graph(options: DecodeOptions, uses_graph: bool) -> None:
    """Check that ``options`` have a graph if and only if the method uses one.

    Raises:
      ValueError: if not.
    """
    if uses_graph and options.graph is None:
        raise ValueError(
            f"--graph: {options.method} needs a graph; write one with bin.compile_hlg"
        )
    if options.graph is not None and not uses_graph:
        raise ValueError(
            f"--graph: {options.method} does not read a graph; use --method ctc_hlg"
        )


class TransducerSearch(Search):
    """Base class of searches with the predictor and the joiner of a transducer."""

    head = "transducer"

    def __init__(self, model: nn.Module, batch_size: int, options: DecodeOptions):
        super().__init__(model, batch_size, options)
        self.decoder = model.decoder
        self.joiner = model.joiner
        self.device = next(model.joiner.parameters()).device

    def _project(self, encoder_out: Tensor) -> Tensor:
        return self.joiner.encoder_proj(encoder_out)

    def _start_context(self, rows: int) -> Tensor:
        """Return the (rows, context_size) int64 ids before the first token."""
        shape = (rows, self.decoder.context_size)
        context = torch.full(shape, NO_TOKEN, dtype=torch.int64, device=self.device)
        context[:, -1] = BLANK_ID
        return context

    def _predict(self, context: Tensor) -> Tensor:
        """Return the projected predictor output (M, D) of (M, context_size) ids."""
        out = self.decoder(context, need_pad=False)
        return self.joiner.decoder_proj(out.squeeze(1))

    def _compute_logits(self, encoder_frame: Tensor, predicted: Tensor) -> Tensor:
        """Return logits (M, V) of projected frames (M, D) and predictions (M, D).

        The blank penalty is already subtracted.
        """
        logits = self.joiner(encoder_frame, predicted, project_input=False)
        if self.options.blank_penalty:
            logits[:, BLANK_ID] -= self.options.blank_penalty
        return logits

    def _is_symbol(self, tokens: Tensor) -> Tensor:
        """Return a mask of the tokens that are neither blank nor ``<unk>``."""
        is_symbol = tokens != BLANK_ID
        if self.options.unk_id is not None:
            is_symbol = is_symbol & (tokens != self.options.unk_id)
        return is_symbol


def move_unk_to_blank(log_probs: Tensor, unk_id: Optional[int]) -> Tensor:
    """Add the probability of ``<unk>`` to the blank; no search then emits ``<unk>``.

    The CTC search of sherpa-onnx would emit ``<unk>``, so exported CTC models contain
    this step.

    Args:
      log_probs: (..., V) float32.
      unk_id: None if the vocabulary has no ``<unk>``.
    Returns:
      (..., V) float32, normalised as ``log_probs``; -inf for ``<unk>``.
    """
    if unk_id is None:
        return log_probs
    ids = torch.arange(log_probs.size(-1), device=log_probs.device)
    both = torch.stack([log_probs[..., BLANK_ID], log_probs[..., unk_id]], dim=-1)
    blank = both.logsumexp(dim=-1, keepdim=True)
    moved = torch.where(ids == BLANK_ID, blank, log_probs)
    return moved.masked_fill(ids == unk_id, -torch.inf)


def collect_hypotheses(scores: Tensor, emitted: Sequence[Tensor]) -> list[Hypothesis]:
    """Return the hypotheses of a search that keeps one per row.

    Args:
      scores: (N,) float32, in nats.
      emitted: per frame, the ids (n,) of the first n rows, or ``NO_TOKEN``.
    """
    found = [Hypothesis(score=score) for score in scores.tolist()]
    for frame, tokens in enumerate(emitted):
        for row, token in enumerate(tokens.tolist()):
            if token != NO_TOKEN:
                found[row].tokens.append(token)
                found[row].timestamps.append(frame)
    return found


def trace_back(
    scores: Tensor, states: Tensor, parents: Sequence[Tensor], emitted: Sequence[Tensor]
) -> list[Hypothesis]:
    """Return the hypotheses of a search that keeps S states per row.

    Args:
      scores: (N,) float32, in nats.
      states: (N,) int64, last state of each hypothesis.
      parents: per frame, the previous state (n, S) of each state of the first n rows.
      emitted: per frame, the ids (n, S) that the states emit, or ``NO_TOKEN``.
    """
    found = [Hypothesis(score=score) for score in scores.tolist()]
    frames = [(p.tolist(), e.tolist()) for p, e in zip(parents, emitted)]
    for row, state in enumerate(states.tolist()):
        for frame in reversed(range(len(frames))):
            previous, tokens = frames[frame]
            if row >= len(previous):  # the utterance ended before this frame
                continue
            if tokens[row][state] != NO_TOKEN:
                found[row].tokens.append(tokens[row][state])
                found[row].timestamps.append(frame)
            state = previous[row][state]
        found[row].tokens.reverse()
        found[row].timestamps.reverse()
    return found
