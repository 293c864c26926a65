"""Fast beam search: the best path of a lattice over the predictor's contexts.

Hypotheses whose last tokens are equal are one, so that a frame costs as many calls of
predictor and joiner as there are contexts, not hypotheses.  k2 keeps the lattice, all
utterances of a batch at once.
Source: Kuang et al., Pruned RNN-T for fast, memory-efficient ASR training, 2022,
arXiv:2206.13236, section 5; the defaults are icefall's.
"""

from typing import Any, List, Optional

import torch
from torch import Tensor, nn

from icefall_kd import BLANK_ID
from icefall_kd.decoding.ctc import silence_unk
from icefall_kd.decoding.hypothesis import DecodeOptions, Hypothesis
from icefall_kd.decoding.search import TransducerSearch
from icefall_kd.transducer.predictor import NO_TOKEN

SCORE_BEAM = 20.0  # nats below the best of a frame that are kept
STATES = 8  # of the graph that are kept, for each context
NEVER = -1e10  # log-probability; finite, as k2 adds it


class FastBeamSearch(TransducerSearch):
    """Keep ``beam`` contexts an utterance, at most one symbol a frame.

    The winner is the best path, its score not divided by its length; the timestamps are
    those of this path.
    """

    uses_beam = True

    def __init__(self, model: nn.Module, batch_size: int, options: DecodeOptions):
        super().__init__(model, batch_size, options)
        import k2

        vocab_size = model.joiner.output_linear.out_features
        self.config = k2.RnntDecodingConfig(
            vocab_size=vocab_size,
            decoder_history_len=model.decoder.context_size,
            beam=SCORE_BEAM,
            max_states=STATES * options.beam,
            max_contexts=options.beam,
        )
        graph = k2.trivial_graph(vocab_size - 1, self.device)
        self.streams = [k2.RnntDecodingStream(graph) for _ in range(batch_size)]
        self.vocab_size, self.num_frames = vocab_size, [0] * batch_size
        # The frame that each step of a row's lattice is of.
        self.steps: List[List[int]] = [[] for _ in range(batch_size)]
        self.found = [Hypothesis() for _ in range(batch_size)]
        self.running: Optional[Any] = None  # lattices of the rows that go on

    def _step(self, encoder_frame: Tensor) -> None:
        import k2

        rows = encoder_frame.size(0)
        if self.running is None or self.running.num_streams != rows:
            self._close(first=rows)
            self.running = k2.RnntDecodingStreams(self.streams[:rows], self.config)
        shape, contexts = self.running.get_contexts()
        predicted = self._predict(_begin_as_others(contexts.long()))
        frames = encoder_frame[shape.row_ids(1).long()]
        log_probs = self._logits(frames, predicted).log_softmax(dim=-1)
        self._advance(silence_unk(log_probs, self.options.unk_id))
        for row in range(rows):
            self.num_frames[row] += 1

    def _advance(self, log_probs: Tensor) -> None:
        """Take a step with (contexts, V)."""
        self.running.advance(log_probs)
        for row in range(self.running.num_streams):
            self.steps[row].append(self.num_frames[row])

    def _close(self, first: int) -> None:
        """Hand the running lattices back, and read the rows from ``first`` on.

        k2 gives a lattice only of streams that have moved together, and in the place of
        its last step stands the end: so a step that says nothing goes before.
        """
        if self.running is None:
            return
        import k2

        shape, _ = self.running.get_contexts()
        nothing = torch.full((shape.tot_size(1), self.vocab_size), NEVER)
        nothing[:, BLANK_ID] = 0.0
        self._advance(nothing.to(self.device))
        running, self.running = self.running, None
        running.terminate_and_flush_to_streams()
        rows = range(first, running.num_streams)
        num_steps = [1] * first + [len(self.steps[row]) for row in rows]
        lattice = running.format_output(num_steps, allow_partial=True)
        best = k2.shortest_path(lattice, use_double_scores=True)
        scores = best.get_tot_scores(use_double_scores=True, log_semiring=False)
        arcs = best.arcs.shape().remove_axis(1)
        labels = k2.RaggedTensor(arcs, best.labels.contiguous()).tolist()
        for row in rows:
            self.found[row] = _read(labels[row], self.steps[row], float(scores[row]))

    def hypotheses(self) -> List[Hypothesis]:
        self._close(first=0)
        return list(self.found)


def _begin_as_others(contexts: Tensor) -> Tensor:
    """Return contexts (M, context_size) that begin as in the other searches.

    k2 begins with blanks; of these the last one stays.
    """
    begun = contexts[:, 1:] == BLANK_ID  # no blank comes later
    contexts[:, :-1].masked_fill_(begun, NO_TOKEN)
    return contexts


def _read(path: List[int], frames: List[int], score: float) -> Hypothesis:
    """Return what the arcs of a path say: a label each step, and -1 at the end."""
    hyp = Hypothesis(score=score)
    for frame, token in zip(frames, path):
        if token > BLANK_ID:
            hyp.tokens.append(token)
            hyp.timestamps.append(frame)
    return hyp
