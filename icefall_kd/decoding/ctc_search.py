"""Searches over the CTC head: greedy, and the prefix beam.

Source of the prefix beam: Hannun et al., First-pass large vocabulary continuous speech
recognition using bi-directional recurrent DNNs, 2014, arXiv:1408.2873, algorithm 1,
without its language model.
"""

from typing import Optional

import torch
from torch import Tensor, nn

from icefall_kd import BLANK_ID
from icefall_kd.decoding.beam_search import HASH_FACTOR
from icefall_kd.decoding.search import DecodeOptions, Hypothesis, Search, collect
from icefall_kd.transducer.model import NO_TOKEN

BLANK_END, TOKEN_END = 0, 1  # how the paths of a prefix end
NEVER = -torch.inf


def move_unk_to_blank(log_probs: Tensor, unk_id: Optional[int]) -> Tensor:
    """Hand the probability of ``<unk>`` to the blank, so that it is never emitted.

    The CTC searches of sherpa-onnx would print ``<unk>``; the export does the same.

    Args:
      log_probs: (..., V) float32.
      unk_id: None: the vocabulary has none.
    Returns:
      (..., V) float32, normalised as before.
    """
    if unk_id is None:
        return log_probs
    ids = torch.arange(log_probs.size(-1), device=log_probs.device)
    silent = torch.stack([log_probs[..., BLANK_ID], log_probs[..., unk_id]], dim=-1)
    blank = silent.logsumexp(dim=-1, keepdim=True)
    return torch.where(ids == BLANK_ID, blank, log_probs).masked_fill(
        ids == unk_id, NEVER
    )


class CtcSearch(Search):
    """A search over the log-probabilities (n, V) of the CTC head, frame by frame."""

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
    """The best symbol of every frame; repetitions merged, then blanks dropped."""

    def __init__(self, model: nn.Module, batch_size: int, options: DecodeOptions):
        super().__init__(model, batch_size, options)
        # The symbol of the frame before, kept from chunk to chunk.
        self.last = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        self.scores = torch.zeros(batch_size, device=self.device)
        self.emitted: list[Tensor] = []  # a frame each, (n,) ids or NO_TOKEN

    def _step(self, log_probs: Tensor) -> None:
        n = log_probs.size(0)
        best, tokens = log_probs.max(dim=-1)
        self.scores[:n] += best
        emits = (tokens != BLANK_ID) & (tokens != self.last[:n])
        self.emitted.append(torch.where(emits, tokens, NO_TOKEN))
        self.last[:n] = tokens

    def hypotheses(self) -> list[Hypothesis]:
        return collect(self.scores, self.emitted)


class CtcPrefixBeamSearch(CtcSearch):
    """Keep the ``beam`` prefixes whose paths together are the most probable.

    Of each prefix the paths that end in a blank and those that end in its last token
    are summed apart, for a token that follows itself needs a blank between.  All
    utterances move in one batch.  Beside the sums goes the best single path of each
    prefix: it says at which frames the tokens begin.
    """

    uses_beam = True

    def __init__(self, model: nn.Module, batch_size: int, options: DecodeOptions):
        super().__init__(model, batch_size, options)
        shape = (batch_size, options.beam)
        # Log-probabilities, (N, beam, 2) by BLANK_END and TOKEN_END: of all paths of
        # a prefix, and of its best path.  -inf in both: nothing lives there.
        self.sums = torch.full((*shape, 2), NEVER, device=self.device)
        self.sums[:, 0, BLANK_END] = 0.0
        self.bests = self.sums.clone()
        self.last = torch.full(shape, NO_TOKEN, dtype=torch.int64, device=self.device)
        # Two prefixes are the same when hash and length are, as in the modified beam.
        self.hashes = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.lengths = torch.zeros(shape, dtype=torch.int64, device=self.device)
        # A frame each: where the best path comes from, (n, beam, 2) as 2 * slot + end;
        # and what its token end emits, (n, beam) ids or NO_TOKEN.
        self.origins: list[Tensor] = []
        self.emitted: list[Tensor] = []

    def _step(self, log_probs: Tensor) -> None:
        n, vocab_size = log_probs.shape
        beam, last = self.options.beam, self.last[:n]
        again = _look_up(log_probs, last)  # (n, beam): the last token once more
        joins = self._joins(n)
        kept, grown = self._extend(log_probs, again, joins)
        scores, index = torch.cat([kept.logsumexp(2), grown.flatten(1)], 1).topk(beam)
        new = index >= beam
        parents = torch.where(new, _divide(index - beam, vocab_size), index)
        tokens = torch.where(new, (index - beam) % vocab_size, last.gather(1, parents))

        self._follow_best(log_probs, again, joins, parents, tokens, new)
        nothing = torch.full_like(scores, NEVER)
        self.sums[:n] = torch.where(
            new[:, :, None], torch.stack([nothing, scores], 2), _pick(kept, parents)
        )
        hashes = self.hashes[:n].gather(1, parents)
        self.hashes[:n] = torch.where(new, (hashes + tokens) * HASH_FACTOR, hashes)
        self.lengths[:n] = self.lengths[:n].gather(1, parents) + new
        self.last[:n] = tokens

    def _joins(self, n: int) -> Tensor:
        """Return (n, child, parent) bool: child is parent and the child's last token.

        Such an extension of the parent is no new prefix: it adds to the child.
        """
        lives = self.sums[:n].amax(2) > NEVER
        hashes, lengths = self.hashes[:n], self.lengths[:n]
        grown = (hashes[:, None] + self.last[:n, :, None]) * HASH_FACTOR
        return (
            (grown == hashes[:, :, None])
            & (lengths[:, None] + 1 == lengths[:, :, None])
            & lives[:, None]
            & lives[:, :, None]
        )

    def _extend(
        self, log_probs: Tensor, again: Tensor, joins: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Move every prefix on by a frame.

        Returns:
          kept: (n, beam, 2), prefixes that stay as they are.
          grown: (n, beam, V), prefixes longer by a token, all ending in it; -inf for
            the blank and for what is among the kept.
        """
        n, beam = again.shape
        sums = self.sums[:n]
        symbols = self.last[:n].clamp(min=BLANK_ID)
        total = sums.logsumexp(2)
        grown = total[:, :, None] + log_probs[:, None]
        grown.scatter_(
            2, symbols[:, :, None], (sums[..., BLANK_END] + again)[..., None]
        )
        grown[:, :, BLANK_ID] = NEVER
        # Of each parent, towards the last token of each child.
        index = symbols[:, None].expand(n, beam, beam)
        toward = grown.gather(2, index).transpose(1, 2)
        joined = toward.masked_fill(~joins, NEVER).amax(2)  # one parent at most
        taken = torch.zeros_like(grown).scatter_add_(
            2, index, joins.transpose(1, 2).to(grown.dtype)
        )
        ends_in_token = torch.logaddexp(sums[..., TOKEN_END] + again, joined)
        ends_in_blank = total + log_probs[:, BLANK_ID, None]
        return (
            torch.stack([ends_in_blank, ends_in_token], dim=2),
            grown.masked_fill_(taken > 0, NEVER),
        )

    def _follow_best(
        self,
        log_probs: Tensor,
        again: Tensor,
        joins: Tensor,
        parents: Tensor,
        tokens: Tensor,
        new: Tensor,
    ) -> None:
        """Move the best paths on to the prefixes that were chosen.

        Args:
          parents, tokens: (n, beam), slot before and last token of each; of a new
            prefix the token is new too.
        """
        n = len(again)
        slots = torch.arange(again.size(1), device=self.device).expand_as(again)
        best, end = self.bests[:n].max(2)
        ends_in_blank = best + log_probs[:, BLANK_ID, None]
        ends_in_token = self.bests[:n, :, TOKEN_END] + again
        parent = joins.int().argmax(2)
        joined, origin = self._depart(n, parent, self.last[:n])
        joined = (joined + again).masked_fill(~joins.any(2), NEVER)
        better = joined > ends_in_token
        origin = torch.where(better, origin, 2 * slots + TOKEN_END)
        emits = torch.where(better, self.last[:n], NO_TOKEN)
        ends_in_token = torch.where(better, joined, ends_in_token)

        grown, from_parent = self._depart(n, parents, tokens)
        grown = grown + _look_up(log_probs, tokens)
        token_origin = torch.where(new, from_parent, origin.gather(1, parents))
        blank_origin = (2 * slots + end).gather(1, parents)
        self.origins.append(torch.stack([blank_origin, token_origin], dim=2))
        self.emitted.append(torch.where(new, tokens, emits.gather(1, parents)))
        ends_in_blank = ends_in_blank.gather(1, parents).masked_fill(new, NEVER)
        ends_in_token = torch.where(new, grown, ends_in_token.gather(1, parents))
        self.bests[:n] = torch.stack([ends_in_blank, ends_in_token], dim=2)

    def _depart(self, n: int, slots: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return score and origin (n, beam) of the best path that ``tokens`` continue.

        Args:
          slots, tokens: (n, beam) int64, a prefix and the token that follows it.
        """
        best, end = _pick(self.bests[:n], slots).max(2)
        again = self.last[:n].gather(1, slots) == tokens
        after_blank = self.bests[:n, :, BLANK_END].gather(1, slots)
        score = torch.where(again, after_blank, best)
        return score, 2 * slots + torch.where(again, BLANK_END, end)

    def hypotheses(self) -> list[Hypothesis]:
        total, winners = self.sums.logsumexp(2).max(1)
        found = [Hypothesis(score=score) for score in total.tolist()]
        ends = _pick(self.bests, winners[:, None]).squeeze(1).argmax(1).tolist()
        origins = [o.tolist() for o in self.origins]
        emitted = [e.tolist() for e in self.emitted]
        for row, (slot, end) in enumerate(zip(winners.tolist(), ends)):
            for frame in reversed(range(len(origins))):
                if row >= len(origins[frame]):  # this utterance had ended
                    continue
                if end == TOKEN_END and emitted[frame][row][slot] != NO_TOKEN:
                    found[row].tokens.append(emitted[frame][row][slot])
                    found[row].timestamps.append(frame)
                slot, end = divmod(origins[frame][row][slot][end], 2)
            found[row].tokens.reverse()
            found[row].timestamps.reverse()
        return found


def _look_up(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probability of each of (n, beam) tokens, -inf where none is."""
    found = log_probs.gather(1, tokens.clamp(min=BLANK_ID))
    return found.masked_fill(tokens == NO_TOKEN, NEVER)


def _pick(pairs: Tensor, slots: Tensor) -> Tensor:
    """Return the (n, k, 2) of the slots (n, k) among (n, beam, 2)."""
    return pairs.gather(1, slots[:, :, None].expand(-1, -1, 2))


def _divide(index: Tensor, by: int) -> Tensor:
    return torch.div(index, by, rounding_mode="floor")
