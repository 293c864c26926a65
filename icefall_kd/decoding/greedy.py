"""Greedy search: the best symbol of every frame."""

import torch
from torch import Tensor, nn

from icefall_kd.decoding.hypothesis import DecodeOptions, Hypothesis
from icefall_kd.decoding.search import TransducerSearch, collect, start_context
from icefall_kd.transducer.predictor import NO_TOKEN


class GreedySearch(TransducerSearch):
    """At most one symbol a frame, the arg max of the joiner."""

    def __init__(self, model: nn.Module, batch_size: int, options: DecodeOptions):
        super().__init__(model, batch_size, options)
        size = self.decoder.context_size
        self.context = start_context(batch_size, size, self.device)
        self.predicted = self._predict(self.context)
        self.scores = torch.zeros(batch_size, device=self.device)
        self.emitted: list[Tensor] = []  # a frame each, (n,) ids or NO_TOKEN

    def _step(self, encoder_frame: Tensor) -> None:
        n = encoder_frame.size(0)
        logits = self._logits(encoder_frame, self.predicted[:n])
        best, tokens = logits.log_softmax(dim=-1).max(dim=-1)
        self.scores[:n] += best
        emits = self._is_symbol(tokens)
        self.emitted.append(torch.where(emits, tokens, NO_TOKEN))
        rows = emits.nonzero().squeeze(1)
        if rows.numel():  # the predictor's answer changes only where it was fed
            moved = torch.cat([self.context[rows, 1:], tokens[rows, None]], dim=1)
            self.context[rows] = moved
            self.predicted[rows] = self._predict(moved)

    def hypotheses(self) -> list[Hypothesis]:
        return collect(self.scores, self.emitted)
