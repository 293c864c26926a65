"""Greedy search and modified beam search over a transducer.

Both follow icefall and sherpa-onnx: they are frame-synchronous and emit at most one
symbol per frame.  Source: Kuang et al., Pruned RNN-T for fast, memory-efficient ASR
training, 2022, arXiv:2206.13236, section 5.
"""

import torch
from torch import Tensor, nn

from icefall_kd.decoding.search import (
    HASH_FACTOR,
    DecodeOptions,
    Hypothesis,
    TransducerSearch,
    collect_hypotheses,
    trace_back,
)
from icefall_kd.transducer.model import NO_TOKEN


class GreedySearch(TransducerSearch):
    """Emit the best symbol of each frame."""

    def __init__(self, model: nn.Module, batch_size: int, options: DecodeOptions):
        super().__init__(model, batch_size, options)
        self.context = self._start_context(batch_size)
        self.predicted = self._predict(self.context)
        self.scores = torch.zeros(batch_size, device=self.device)
        self.emitted: list[Tensor] = []  # per frame: (n,) ids or NO_TOKEN

    def _step(self, encoder_frame: Tensor) -> None:
        n = encoder_frame.size(0)
        logits = self._compute_logits(encoder_frame, self.predicted[:n])
        best, tokens = logits.log_softmax(dim=-1).max(dim=-1)
        self.scores[:n] += best
        is_symbol = self._is_symbol(tokens)
        self.emitted.append(torch.where(is_symbol, tokens, NO_TOKEN))
        rows = is_symbol.nonzero().squeeze(1)
        if rows.numel():  # the predictor output of the other rows stays the same
            context = torch.cat([self.context[rows, 1:], tokens[rows, None]], dim=1)
            self.context[rows] = context
            self.predicted[rows] = self._predict(context)

    def hypotheses(self) -> list[Hypothesis]:
        return collect_hypotheses(self.scores, self.emitted)


class ModifiedBeamSearch(TransducerSearch):
    """Keep ``beam`` hypotheses per utterance; all utterances are in one batch.

    Each frame selects the best ``beam`` extensions and then merges equal hypotheses by
    adding their probabilities.  Fewer than ``beam`` hypotheses may remain; unused slots
    have a score of -inf.  The result is the hypothesis with the highest score divided
    by its length, which includes the start context, as in icefall and sherpa-onnx.
    """

    uses_beam = True
    uses_hotwords = True

    def __init__(self, model: nn.Module, batch_size: int, options: DecodeOptions):
        super().__init__(model, batch_size, options)
        shape = (batch_size, options.beam)
        context = self._start_context(batch_size * options.beam)
        self.context = context.view(*shape, self.decoder.context_size)
        self.scores = torch.full(shape, -torch.inf, device=self.device)
        self.scores[:, 0] = 0.0
        self.hashes = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.lengths = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.hotwords = options.hotwords and options.hotwords.to(self.device)
        # state of each hypothesis in the hotword automaton
        self.hotword_states = torch.zeros_like(self.hashes)
        # Per frame: slot of the predecessor (n, beam), and ids (n, beam) or NO_TOKEN.
        self.parents: list[Tensor] = []
        self.emitted: list[Tensor] = []

    def _step(self, encoder_frame: Tensor) -> None:
        n, beam = encoder_frame.size(0), self.options.beam
        predicted = self._predict(self.context[:n].flatten(0, 1))
        frames = encoder_frame.repeat_interleave(beam, dim=0)
        log_probs = self._compute_logits(frames, predicted).log_softmax(dim=-1)
        vocab_size = log_probs.size(-1)
        total = self.scores[:n, :, None] + log_probs.view(n, beam, vocab_size)
        scores, index = total.flatten(1).topk(beam, dim=1)
        parents = torch.div(index, vocab_size, rounding_mode="floor")
        tokens = index % vocab_size
        is_symbol = self._is_symbol(tokens)

        context = self.context[:n].gather(
            1, parents[:, :, None].expand(-1, -1, self.context.size(2))
        )
        extended = torch.cat([context[:, :, 1:], tokens[:, :, None]], dim=2)
        self.context[:n] = torch.where(is_symbol[:, :, None], extended, context)
        hashes = self.hashes[:n].gather(1, parents)
        new_hashes = (hashes + tokens) * HASH_FACTOR
        self.hashes[:n] = torch.where(is_symbol, new_hashes, hashes)
        self.lengths[:n] = self.lengths[:n].gather(1, parents) + is_symbol
        if self.hotwords is not None:
            states = self.hotword_states[:n].gather(1, parents)
            scores = scores + self.hotwords.gain[states, tokens] * is_symbol
            self.hotword_states[:n] = torch.where(
                is_symbol, self.hotwords.next[states, tokens], states
            )
        self.scores[:n] = self._merge(scores, self.hashes[:n], self.lengths[:n])
        self.parents.append(parents)
        self.emitted.append(torch.where(is_symbol, tokens, NO_TOKEN))

    @staticmethod
    def _merge(scores: Tensor, hashes: Tensor, lengths: Tensor) -> Tensor:
        """Return the scores (n, beam) after merging equal hypotheses.

        The first of several equal hypotheses gets the sum of their probabilities, the
        others -inf.

        Args:
          scores: (n, beam) float32, in nats.
          hashes, lengths: (n, beam) int64; hypotheses are equal if both are equal.
        """
        is_equal = (hashes[:, :, None] == hashes[:, None]) & (
            lengths[:, :, None] == lengths[:, None]
        )
        first = is_equal.int().argmax(dim=2)  # index of the first equal hypothesis
        slots = torch.arange(scores.size(1), device=scores.device)
        sums = scores[:, None].masked_fill(~is_equal, -torch.inf).logsumexp(dim=2)
        return sums.masked_fill(first != slots, -torch.inf)

    def finish(self) -> None:
        """Subtract the bonuses of incomplete hotwords."""
        if self.hotwords is not None:
            self.scores -= self.hotwords.unfinished[self.hotword_states]
            self.hotword_states.zero_()

    def hypotheses(self) -> list[Hypothesis]:
        context_size = self.context.size(2)
        winners = (self.scores / (self.lengths + context_size)).argmax(dim=1)
        scores = self.scores.gather(1, winners[:, None]).squeeze(1)
        return trace_back(scores, winners, self.parents, self.emitted)
