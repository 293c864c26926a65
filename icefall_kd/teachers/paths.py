"""The one-best path of a transducer: the output "path" of a teacher."""

from collections.abc import Sequence
from typing import Optional

from torch import Tensor

from icefall_kd.cache.topk import join_path, take_topk
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.decoding import DecodeOptions, decode
from icefall_kd.masks import make_pad_mask
from icefall_kd.teachers.protocol import TeacherOutput
from icefall_kd.transducer.adapter_ensemble import AdapterEnsemble, Encoded
from icefall_kd.transducer.bigram import fuse
from icefall_kd.transducer.path import best_path, tokens_before

# Output -> the head of the model that it comes from.
HEAD_OF = {"ctc": "ctc", "path": "transducer"}


class BestPaths:
    """Finds one-best paths, and the joiner's distributions on them.

    The path is the most probable one of the transcript; without a transcript that has
    a path, of what the first model recognises by beam search.

    Args:
      models:    one or more transducers of one vocabulary.
      tokenizer: of that vocabulary.
      topk:      tokens kept of each frame.
      beam:      hypotheses of the search.
      lm:        (V, V) log-probabilities of a bigram that is fused into the
                 distributions, not into the search; see
                 :func:`icefall_kd.transducer.bigram.fuse`.
      lm_scale:  of the bigram.
    """

    def __init__(
        self,
        models: AdapterEnsemble,
        tokenizer: Tokenizer,
        topk: int,
        beam: int,
        lm: Optional[Tensor] = None,
        lm_scale: float = 0.0,
    ) -> None:
        self.models = models
        self.tokenizer = tokenizer
        self.topk = topk
        self.lm, self.lm_scale = lm, lm_scale
        self.search = DecodeOptions(
            "modified_beam_search", beam, unk_id=tokenizer.unk_id
        )

    def __call__(
        self, encoded: Encoded, lens: Tensor, texts: Sequence[str]
    ) -> TeacherOutput:
        """Return (N, T, 2 k + 2) float32, see :func:`icefall_kd.cache.topk.join_path`.

        Args:
          encoded: of each model (N, T, C) float32.
          lens:    (N,) int64, valid frames.
          texts:   N transcripts; one that is empty, or has more tokens than there are
                   frames, is not used.
        Raises:
          ValueError: for another number of transcripts.
        """
        if len(texts) != len(lens):
            raise ValueError(
                f"{len(texts)} transcripts for {len(lens)} utterances: give one of "
                'each, "" where there is none'
            )
        emitted = self._emitted(encoded, lens, texts)
        log_probs = self.models.on_path(encoded, emitted)
        if self.lm is not None:
            log_probs = fuse(log_probs, tokens_before(emitted), self.lm, self.lm_scale)
        x = join_path(emitted, take_topk(log_probs, self.topk))
        mask = make_pad_mask(lens, x.size(1)).unsqueeze(-1)
        return TeacherOutput(x.masked_fill(mask, 0.0), lens)

    def _emitted(self, encoded: Encoded, lens: Tensor, texts: Sequence[str]) -> Tensor:
        """Return the tokens that the best paths emit, (N, T) int64, 0 for the blank."""
        emitted = lens.new_zeros(encoded[0].shape[:2])
        for n, (frames, text) in enumerate(zip(lens.tolist(), texts)):
            own = [x[n : n + 1, :frames] for x in encoded]
            tokens = self.tokenizer.encode(text) if text else []
            if not tokens or len(tokens) > frames:
                first = self.models.models[0]
                found = decode(first, own[0], lens[n : n + 1], self.search)
                tokens = found[0].tokens
            lattice = self.models.lattice(own, tokens)
            emitted[n, :frames] = best_path(lattice, tokens)
        return emitted
