"""Lattices over the contexts of the predictor, for the fast beam search.

Source: Kuang et al., Pruned RNN-T for fast, memory-efficient ASR training, 2022,
arXiv:2206.13236, section 5, in k2; the limits are icefall's.

Fast beam search: the best path of a lattice over the predictor's contexts.

Hypotheses whose last tokens are equal are one, so that a frame costs as many calls of
predictor and joiner as there are contexts, not hypotheses.  k2 keeps the lattices, all
utterances of a batch at once.
"""

from typing import Any, Optional

import torch
from torch import Tensor, nn

from icefall_kd import BLANK_ID
from icefall_kd.decoding.ctc_search import move_unk_to_blank
from icefall_kd.decoding.search import DecodeOptions, Hypothesis, TransducerSearch
from icefall_kd.transducer.model import NO_TOKEN

SCORE_BEAM = 20.0  # nats below the best of a frame that are kept
STATES = 8  # of the graph that are kept, for each context
NEVER = -1e10  # log-probability; finite, as k2 adds it
# Tokens without blanks, the frame of each, and the log-probability of the path.
BestPath = tuple[list[int], list[int], float]


class ContextLattices:
    """The lattices of N utterances, at most one token a frame.

    The utterances are the rows; those that go on are the first ones.
    """

    def __init__(
        self,
        count: int,
        vocab_size: int,
        context_size: int,
        max_contexts: int,
        device: torch.device,
    ) -> None:
        """Start N empty lattices.

        Args:
          count: N.
          vocab_size: V.
          context_size: tokens that the predictor reads.
          max_contexts: that are kept of an utterance in a frame.
        """
        import k2

        self.device, self.vocab_size = device, vocab_size
        self._config = k2.RnntDecodingConfig(
            vocab_size=vocab_size,
            decoder_history_len=context_size,
            beam=SCORE_BEAM,
            max_states=STATES * max_contexts,
            max_contexts=max_contexts,
        )
        graph = k2.trivial_graph(vocab_size - 1, device)
        self._streams = [k2.RnntDecodingStream(graph) for _ in range(count)]
        self._num_frames = [0] * count
        # The frame that each step of a row's lattice is of.
        self._steps: list[list[int]] = [[] for _ in range(count)]
        self._found: list[BestPath] = [([], [], 0.0)] * count
        self._running: Optional[Any] = None  # lattices of the rows that go on

    def contexts(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return the row (M,) and the tokens (M, context_size) of every live context.

        Both int64; a context begins with blanks.

        Args:
          rows: that go on, no more than before.
        """
        import k2

        if self._running is None or self._running.num_streams != rows:
            self._close(first=rows)
            self._running = k2.RnntDecodingStreams(self._streams[:rows], self._config)
        shape, contexts = self._running.get_contexts()
        return shape.row_ids(1).long(), contexts.long()

    def advance(self, log_probs: Tensor) -> None:
        """Take in a frame: log-probabilities (M, V) behind each of the contexts."""
        self._step(log_probs)
        for row in range(self._running.num_streams):
            self._num_frames[row] += 1

    def best_paths(self) -> list[BestPath]:
        """Return the best path of each of the N rows so far."""
        self._close(first=0)
        return list(self._found)

    def _step(self, log_probs: Tensor) -> None:
        self._running.advance(log_probs)
        for row in range(self._running.num_streams):
            self._steps[row].append(self._num_frames[row])

    def _close(self, first: int) -> None:
        """Hand the running lattices back, and read the rows from ``first`` on.

        k2 gives a lattice only of streams that have moved together, and in the place of
        its last step stands the end: so a step that says nothing goes before.
        """
        if self._running is None:
            return
        import k2

        shape, _ = self._running.get_contexts()
        nothing = torch.full((shape.tot_size(1), self.vocab_size), NEVER)
        nothing[:, BLANK_ID] = 0.0
        self._step(nothing.to(self.device))
        running, self._running = self._running, None
        running.terminate_and_flush_to_streams()
        rows = range(first, running.num_streams)
        num_steps = [1] * first + [len(self._steps[row]) for row in rows]
        lattice = running.format_output(num_steps, allow_partial=True)
        best = k2.shortest_path(lattice, use_double_scores=True)
        scores = best.get_tot_scores(use_double_scores=True, log_semiring=False)
        arcs = best.arcs.shape().remove_axis(1)
        labels = k2.RaggedTensor(arcs, best.labels.contiguous()).tolist()
        for row in rows:
            self._found[row] = _read(labels[row], self._steps[row], float(scores[row]))


def _read(labels: list[int], frames: list[int], score: float) -> BestPath:
    """Return what the arcs of a path say: a label each step, and -1 at the end."""
    found = [(token, f) for token, f in zip(labels, frames) if token > BLANK_ID]
    return [token for token, _ in found], [f for _, f in found], score


class FastBeamSearch(TransducerSearch):
    """Keep ``beam`` contexts an utterance, at most one symbol a frame.

    The winner is the best path, its score not divided by its length; the timestamps are
    those of this path.
    """

    packages = ("k2",)
    uses_beam = True

    def __init__(self, model: nn.Module, batch_size: int, options: DecodeOptions):
        super().__init__(model, batch_size, options)
        self.lattices = ContextLattices(
            batch_size,
            model.joiner.output_linear.out_features,
            model.decoder.context_size,
            options.beam,
            self.device,
        )

    def _step(self, encoder_frame: Tensor) -> None:
        rows, contexts = self.lattices.contexts(encoder_frame.size(0))
        predicted = self._predict(_begin_as_others(contexts))
        log_probs = self._logits(encoder_frame[rows], predicted).log_softmax(dim=-1)
        self.lattices.advance(move_unk_to_blank(log_probs, self.options.unk_id))

    def hypotheses(self) -> list[Hypothesis]:
        return [
            Hypothesis(list(tokens), list(frames), score)
            for tokens, frames, score in self.lattices.best_paths()
        ]


def _begin_as_others(contexts: Tensor) -> Tensor:
    """Return contexts (M, context_size) that begin as in the other searches.

    k2 begins with blanks; of these the last one stays.
    """
    begun = contexts[:, 1:] == BLANK_ID  # no blank comes later
    contexts[:, :-1].masked_fill_(begun, NO_TOKEN)
    return contexts
