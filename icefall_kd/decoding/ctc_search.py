"""Greedy search and prefix beam search over a CTC head.

Source of the prefix beam search: Hannun et al., First-pass large vocabulary continuous
speech recognition using bi-directional recurrent DNNs, 2014, arXiv:1408.2873,
algorithm 1, without its language model.
"""

import torch
from torch import Tensor, nn

from icefall_kd import BLANK_ID
from icefall_kd.decoding.search import (
    HASH_FACTOR,
    DecodeOptions,
    Hypothesis,
    Search,
    collect_hypotheses,
    move_unk_to_blank,
    trace_back,
)
from icefall_kd.transducer.model import NO_TOKEN

BLANK_END, TOKEN_END = 0, 1  # the last symbol of a path is a blank or a token
LOG_ZERO = -torch.inf  # score of paths that do not exist


class CtcSearch(Search):
    """Base class of searches over the log-probabilities (n, V) of a CTC head."""

    head = "ctc"

    def __init__(self, model: nn.Module, batch_size: int, options: DecodeOptions):
        super().__init__(model, batch_size, options)
        self.ctc_output = model.ctc_output
        self.device = next(model.ctc_output.parameters()).device

    def _project(self, encoder_out: Tensor) -> Tensor:
        log_probs = self.ctc_output(encoder_out)
        if self.options.blank_penalty:
            log_probs[..., BLANK_ID] -= self.options.blank_penalty
            log_probs = log_probs.log_softmax(dim=-1)
        return move_unk_to_blank(log_probs, self.options.unk_id)


class CtcGreedySearch(CtcSearch):
    """Emit the best symbol of each frame, without repetitions and blanks."""

    def __init__(self, model: nn.Module, batch_size: int, options: DecodeOptions):
        super().__init__(model, batch_size, options)
        # best symbol of the previous frame, also across chunks
        self.last = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        self.scores = torch.zeros(batch_size, device=self.device)
        self.emitted: list[Tensor] = []  # per frame: (n,) ids or NO_TOKEN

    def _step(self, log_probs: Tensor) -> None:
        n = log_probs.size(0)
        best, tokens = log_probs.max(dim=-1)
        self.scores[:n] += best
        is_new = (tokens != BLANK_ID) & (tokens != self.last[:n])
        self.emitted.append(torch.where(is_new, tokens, NO_TOKEN))
        self.last[:n] = tokens

    def hypotheses(self) -> list[Hypothesis]:
        return collect_hypotheses(self.scores, self.emitted)


class CtcPrefixBeamSearch(CtcSearch):
    """Keep the ``beam`` prefixes whose paths have the largest total probability.

    A prefix is a sequence of tokens.  It has two sums: over its paths that end in a
    blank, and over those that end in its last token.  Only the first can be followed by
    an equal token.  The best single path of each prefix gives the timestamps.  All
    utterances are in one batch.
    """

    uses_beam = True

    def __init__(self, model: nn.Module, batch_size: int, options: DecodeOptions):
        super().__init__(model, batch_size, options)
        shape = (batch_size, options.beam)
        # Log-probabilities (N, beam, 2) of all paths (sums) and of the best path
        # (bests) of each prefix.  Last axis: BLANK_END, TOKEN_END.  Unused slots: -inf.
        self.sums = torch.full((*shape, 2), LOG_ZERO, device=self.device)
        self.sums[:, 0, BLANK_END] = 0.0
        self.bests = self.sums.clone()
        self.last = torch.full(shape, NO_TOKEN, dtype=torch.int64, device=self.device)
        self.hashes = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.lengths = torch.zeros(shape, dtype=torch.int64, device=self.device)
        # Per frame, for each state 2 * slot + end: previous state of the best path, and
        # emitted token or NO_TOKEN, (n, 2 * beam) int64 each.
        self.origins: list[Tensor] = []
        self.emitted: list[Tensor] = []

    def _step(self, log_probs: Tensor) -> None:
        n, vocab_size = log_probs.shape
        beam, last = self.options.beam, self.last[:n]
        repeat = _gather_log_probs(log_probs, last)  # (n, beam): repeats the last token
        is_parent = self._find_parents(n)
        same, longer = self._extend(log_probs, repeat, is_parent)
        candidates = torch.cat([same.logsumexp(2), longer.flatten(1)], dim=1)
        scores, index = candidates.topk(beam)
        is_longer = index >= beam
        extension = index - beam
        parents = torch.where(
            is_longer,
            torch.div(extension, vocab_size, rounding_mode="floor"),
            index,
        )
        tokens = torch.where(is_longer, extension % vocab_size, last.gather(1, parents))

        self._update_best_paths(
            log_probs, repeat, is_parent, parents, tokens, is_longer
        )
        self.sums[:n] = torch.where(
            is_longer[:, :, None],
            torch.stack([torch.full_like(scores, LOG_ZERO), scores], dim=2),
            _gather_slots(same, parents),
        )
        hashes = self.hashes[:n].gather(1, parents)
        new_hashes = (hashes + tokens) * HASH_FACTOR
        self.hashes[:n] = torch.where(is_longer, new_hashes, hashes)
        self.lengths[:n] = self.lengths[:n].gather(1, parents) + is_longer
        self.last[:n] = tokens

    def _find_parents(self, n: int) -> Tensor:
        """Return (n, child, parent) bool: whether parent and one token give child.

        The extended parent is then an existing prefix, so its paths count for child.
        """
        is_used = self.sums[:n].amax(2) > LOG_ZERO
        hashes, lengths = self.hashes[:n], self.lengths[:n]
        extended = (hashes[:, None] + self.last[:n, :, None]) * HASH_FACTOR
        return (
            (extended == hashes[:, :, None])
            & (lengths[:, None] + 1 == lengths[:, :, None])
            & is_used[:, None]
            & is_used[:, :, None]
        )

    def _extend(
        self, log_probs: Tensor, repeat: Tensor, is_parent: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the sums of all prefixes after one more frame.

        Returns:
          same: (n, beam, 2) of the existing prefixes.
          longer: (n, beam, V) of prefixes extended by a token; -inf for the blank and
            for extensions that are existing prefixes.
        """
        n, beam = repeat.shape
        sums = self.sums[:n]
        last = self.last[:n].clamp(min=BLANK_ID)
        total = sums.logsumexp(2)
        longer = total[:, :, None] + log_probs[:, None]
        longer.scatter_(2, last[:, :, None], (sums[..., BLANK_END] + repeat)[..., None])
        longer[:, :, BLANK_ID] = LOG_ZERO
        # (n, child, parent): sum of parent extended by the last token of child
        index = last[:, None].expand(n, beam, beam)
        to_child = longer.gather(2, index).transpose(1, 2)
        from_parent = to_child.masked_fill(~is_parent, LOG_ZERO).amax(2)  # at most one
        exists = torch.zeros_like(longer).scatter_add_(
            2, index, is_parent.transpose(1, 2).to(longer.dtype)
        )
        ends_in_token = torch.logaddexp(sums[..., TOKEN_END] + repeat, from_parent)
        ends_in_blank = total + log_probs[:, BLANK_ID, None]
        return (
            torch.stack([ends_in_blank, ends_in_token], dim=2),
            longer.masked_fill_(exists > 0, LOG_ZERO),
        )

    def _update_best_paths(
        self,
        log_probs: Tensor,
        repeat: Tensor,
        is_parent: Tensor,
        parents: Tensor,
        tokens: Tensor,
        is_longer: Tensor,
    ) -> None:
        """Extend the best path of each selected prefix by one frame.

        Args:
          repeat: (n, beam), log-probability of the last token of each old prefix.
          is_parent: see :meth:`_find_parents`.
          parents, tokens: (n, beam), previous slot and last token of each new prefix.
          is_longer: (n, beam) bool, True where the prefix grew by ``tokens``.
        """
        n = len(repeat)
        slots = torch.arange(repeat.size(1), device=self.device).expand_as(repeat)
        best, end = self.bests[:n].max(2)
        ends_in_blank = best + log_probs[:, BLANK_ID, None]
        ends_in_token = self.bests[:n, :, TOKEN_END] + repeat
        parent = is_parent.int().argmax(2)
        from_parent, origin = self._best_before(n, parent, self.last[:n])
        from_parent = (from_parent + repeat).masked_fill(~is_parent.any(2), LOG_ZERO)
        is_better = from_parent > ends_in_token
        origin = torch.where(is_better, origin, 2 * slots + TOKEN_END)
        emits = torch.where(is_better, self.last[:n], NO_TOKEN)
        ends_in_token = torch.where(is_better, from_parent, ends_in_token)

        longer, longer_origin = self._best_before(n, parents, tokens)
        longer = longer + _gather_log_probs(log_probs, tokens)
        token_origin = torch.where(is_longer, longer_origin, origin.gather(1, parents))
        blank_origin = (2 * slots + end).gather(1, parents)
        emitted = torch.where(is_longer, tokens, emits.gather(1, parents))
        no_token = torch.full_like(emitted, NO_TOKEN)
        self.origins.append(torch.stack([blank_origin, token_origin], dim=2).flatten(1))
        self.emitted.append(torch.stack([no_token, emitted], dim=2).flatten(1))
        ends_in_blank = ends_in_blank.gather(1, parents)
        ends_in_blank = ends_in_blank.masked_fill(is_longer, LOG_ZERO)
        ends_in_token = torch.where(is_longer, longer, ends_in_token.gather(1, parents))
        self.bests[:n] = torch.stack([ends_in_blank, ends_in_token], dim=2)

    def _best_before(
        self, n: int, slots: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return score and state (n, beam) of the best paths that tokens may follow.

        Args:
          slots, tokens: (n, beam) int64, a prefix and the token that follows it.
        """
        best, end = _gather_slots(self.bests[:n], slots).max(2)
        repeats = self.last[:n].gather(1, slots) == tokens
        after_blank = self.bests[:n, :, BLANK_END].gather(1, slots)
        score = torch.where(repeats, after_blank, best)
        return score, 2 * slots + torch.where(repeats, BLANK_END, end)

    def hypotheses(self) -> list[Hypothesis]:
        total, winners = self.sums.logsumexp(2).max(1)
        bests = _gather_slots(self.bests, winners[:, None]).squeeze(1)
        states = 2 * winners + bests.argmax(1)
        return trace_back(total, states, self.origins, self.emitted)


def _gather_log_probs(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probabilities of (n, beam) tokens, -inf for ``NO_TOKEN``."""
    found = log_probs.gather(1, tokens.clamp(min=BLANK_ID))
    return found.masked_fill(tokens == NO_TOKEN, LOG_ZERO)


def _gather_slots(pairs: Tensor, slots: Tensor) -> Tensor:
    """Return the rows (n, k, 2) of ``pairs`` (n, beam, 2) at ``slots`` (n, k)."""
    return pairs.gather(1, slots[:, :, None].expand(-1, -1, 2))
