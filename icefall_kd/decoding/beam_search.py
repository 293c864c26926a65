"""Greedy search: the best symbol of every frame.

Modified beam search: one symbol a frame, equal hypotheses merged.

Source: the search of icefall and sherpa-onnx of this name; a frame-synchronous beam
without expansion inside a frame, Kuang et al., Pruned RNN-T for fast, memory-efficient
ASR training, 2022, arXiv:2206.13236, section 5.
"""

import torch
from torch import Tensor, nn

from icefall_kd.decoding.search import (
    DecodeOptions,
    Hypothesis,
    TransducerSearch,
    collect,
    start_context,
)
from icefall_kd.transducer.model import NO_TOKEN


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


# Odd, so that multiplying modulo 2^64 loses nothing (Knuth's constant for hashing).
HASH_FACTOR = -7046029254386353131


class ModifiedBeamSearch(TransducerSearch):
    """Keep ``beam`` hypotheses an utterance; all utterances move in one batch.

    The best ``beam`` extensions of a frame are taken first and those with the same
    tokens merged afterwards, their probabilities added, so fewer than ``beam`` may
    live: the dead ones have a score of -inf.  The winner has the best score divided
    by its number of tokens, the start context counted, as in icefall and sherpa-onnx.
    """

    uses_beam = True
    uses_hotwords = True

    def __init__(self, model: nn.Module, batch_size: int, options: DecodeOptions):
        super().__init__(model, batch_size, options)
        shape = (batch_size, options.beam)
        size = self.decoder.context_size
        context = start_context(batch_size * options.beam, size, self.device)
        self.context = context.view(*shape, size)
        self.scores = torch.full(shape, -torch.inf, device=self.device)
        self.scores[:, 0] = 0.0
        # Two hypotheses are the same when the hash of all their tokens is: 64 bits
        # make an accidental merge less likely than a memory error.
        self.hashes = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.lengths = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.hotwords = options.hotwords and options.hotwords.to(self.device)
        self.phrases = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.parents: list[Tensor] = []  # a frame each, (n, beam)
        self.emitted: list[Tensor] = []  # a frame each, (n, beam) ids or NO_TOKEN

    def _step(self, encoder_frame: Tensor) -> None:
        n, beam = encoder_frame.size(0), self.options.beam
        predicted = self._predict(self.context[:n].flatten(0, 1))
        frames = encoder_frame.repeat_interleave(beam, dim=0)
        log_probs = self._logits(frames, predicted).log_softmax(dim=-1)
        vocab_size = log_probs.size(-1)
        total = self.scores[:n, :, None] + log_probs.view(n, beam, vocab_size)
        scores, index = total.flatten(1).topk(beam, dim=1)
        parents = torch.div(index, vocab_size, rounding_mode="floor")
        tokens = index % vocab_size
        emits = self._is_symbol(tokens)

        context = self.context[:n].gather(
            1, parents[:, :, None].expand(-1, -1, self.context.size(2))
        )
        moved = torch.cat([context[:, :, 1:], tokens[:, :, None]], dim=2)
        self.context[:n] = torch.where(emits[:, :, None], moved, context)
        hashes = self.hashes[:n].gather(1, parents)
        self.hashes[:n] = torch.where(emits, (hashes + tokens) * HASH_FACTOR, hashes)
        self.lengths[:n] = self.lengths[:n].gather(1, parents) + emits
        if self.hotwords is not None:
            phrases = self.phrases[:n].gather(1, parents)
            scores = scores + self.hotwords.gain[phrases, tokens] * emits
            self.phrases[:n] = torch.where(
                emits, self.hotwords.next[phrases, tokens], phrases
            )
        self.scores[:n] = self._merge(scores, self.hashes[:n], self.lengths[:n])
        self.parents.append(parents)
        self.emitted.append(torch.where(emits, tokens, NO_TOKEN))

    @staticmethod
    def _merge(scores: Tensor, hashes: Tensor, lengths: Tensor) -> Tensor:
        """Give the log-sum of equal hypotheses to the first of them, -inf to the rest.

        Args:
          scores: (n, beam) float32, descending but for the bonuses of hotwords.
          hashes, lengths: (n, beam) int64, equal where the tokens are.
        Returns:
          (n, beam) float32.
        """
        same = (hashes[:, :, None] == hashes[:, None]) & (
            lengths[:, :, None] == lengths[:, None]
        )
        first = same.int().argmax(dim=2)  # index of the first equal hypothesis
        own = torch.arange(scores.size(1), device=scores.device)
        sums = scores[:, None].masked_fill(~same, -torch.inf).logsumexp(dim=2)
        return sums.masked_fill(first != own, -torch.inf)

    def finish(self) -> None:
        """Take back what hotwords have earned that were only begun."""
        if self.hotwords is not None:
            self.scores -= self.hotwords.unfinished[self.phrases]
            self.phrases.zero_()

    def hypotheses(self) -> list[Hypothesis]:
        context_size = self.context.size(2)
        winners = (self.scores / (self.lengths + context_size)).argmax(dim=1)
        scores = self.scores.gather(1, winners[:, None]).squeeze(1)
        found = [Hypothesis(score=score) for score in scores.tolist()]
        parents = [p.tolist() for p in self.parents]
        emitted = [e.tolist() for e in self.emitted]
        for row, slot in enumerate(winners.tolist()):
            for frame in reversed(range(len(parents))):
                if row >= len(parents[frame]):  # this utterance had ended
                    continue
                if emitted[frame][row][slot] != NO_TOKEN:
                    found[row].tokens.append(emitted[frame][row][slot])
                    found[row].timestamps.append(frame)
                slot = parents[frame][row][slot]
            found[row].tokens.reverse()
            found[row].timestamps.reverse()
        return found
