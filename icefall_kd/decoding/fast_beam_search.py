"""Fast beam search over lattices, with k2.

Hypotheses with equal predictor contexts share a lattice state.  A frame therefore runs
predictor and joiner once per context instead of once per hypothesis.  Source:
Kuang et al., Pruned RNN-T for fast, memory-efficient ASR training, 2022,
arXiv:2206.13236, section 5; the limits are icefall's.
"""

from typing import Any, Optional

import torch
from torch import Tensor, nn

from icefall_kd import BLANK_ID
from icefall_kd.decoding.search import (
    DecodeOptions,
    Hypothesis,
    TransducerSearch,
    move_unk_to_blank,
)
from icefall_kd.transducer.model import NO_TOKEN

SCORE_BEAM = 20.0  # nats below the best score of a frame; icefall: beam
STATES_PER_CONTEXT = 8  # icefall: max_states / max_contexts
LOG_ZERO = -1e10  # finite, because k2 adds it to scores


class FastBeamSearch(TransducerSearch):
    """Keep ``beam`` contexts per utterance, with at most one symbol per frame.

    The result is the best path of the lattice.  Its score is not divided by its length.
    """

    packages = ("k2",)
    uses_beam = True

    def __init__(self, model: nn.Module, batch_size: int, options: DecodeOptions):
        super().__init__(model, batch_size, options)
        import k2

        self.vocab_size = model.joiner.output_linear.out_features
        self.config = k2.RnntDecodingConfig(
            vocab_size=self.vocab_size,
            decoder_history_len=self.decoder.context_size,
            beam=SCORE_BEAM,
            max_states=STATES_PER_CONTEXT * options.beam,
            max_contexts=options.beam,
        )
        graph = k2.trivial_graph(self.vocab_size - 1, self.device)
        self.streams = [k2.RnntDecodingStream(graph) for _ in range(batch_size)]
        self.active: Optional[Any] = None  # k2.RnntDecodingStreams of the active rows
        self.num_frames = [0] * batch_size
        # frame of each lattice step; a closing step (_read_lattices) has the next frame
        self.step_frames: list[list[int]] = [[] for _ in range(batch_size)]
        self.found = [Hypothesis() for _ in range(batch_size)]

    def _step(self, encoder_frame: Tensor) -> None:
        import k2

        n = encoder_frame.size(0)
        if self.active is None or self.active.num_streams != n:
            self._read_lattices(first=n)
            self.active = k2.RnntDecodingStreams(self.streams[:n], self.config)
        shape, contexts = self.active.get_contexts()
        rows, contexts = shape.row_ids(1).long(), contexts.long()
        # k2 pads the start with blanks; the other searches read -1, ..., -1, 0.
        contexts[:, :-1].masked_fill_(contexts[:, 1:] == BLANK_ID, NO_TOKEN)
        logits = self._compute_logits(encoder_frame[rows], self._predict(contexts))
        log_probs = move_unk_to_blank(logits.log_softmax(-1), self.options.unk_id)
        self._advance_lattices(log_probs)
        for row in range(n):
            self.num_frames[row] += 1

    def hypotheses(self) -> list[Hypothesis]:
        self._read_lattices(first=0)
        return [
            Hypothesis(list(hyp.tokens), list(hyp.timestamps), hyp.score)
            for hyp in self.found
        ]

    def _advance_lattices(self, log_probs: Tensor) -> None:
        """Add a step with the log-probabilities (M, V) of all active contexts."""
        self.active.advance(log_probs)
        for row in range(self.active.num_streams):
            self.step_frames[row].append(self.num_frames[row])

    def _read_lattices(self, first: int) -> None:
        """Close the active lattices and store the best path of rows ``first`` onwards.

        k2 replaces the last step of a lattice by its end, so a blank step comes first.
        """
        if self.active is None:
            return
        import k2

        shape, _ = self.active.get_contexts()
        blank_step = torch.full((shape.tot_size(1), self.vocab_size), LOG_ZERO)
        blank_step[:, BLANK_ID] = 0.0
        self._advance_lattices(blank_step.to(self.device))
        streams, self.active = self.active, None
        streams.terminate_and_flush_to_streams()
        rows = range(first, streams.num_streams)
        num_steps = [1] * first + [len(self.step_frames[row]) for row in rows]
        lattice = streams.format_output(num_steps, allow_partial=True)
        best = k2.shortest_path(lattice, use_double_scores=True)
        scores = best.get_tot_scores(use_double_scores=True, log_semiring=False)
        arcs = best.arcs.shape().remove_axis(1)
        labels = k2.RaggedTensor(arcs, best.labels.contiguous()).tolist()
        for row in rows:  # one label for each step, then -1
            path = zip(labels[row], self.step_frames[row])
            symbols = [(token, frame) for token, frame in path if token > BLANK_ID]
            self.found[row] = Hypothesis(
                [token for token, _ in symbols],
                [frame for _, frame in symbols],
                float(scores[row]),
            )
