"""One-best paths of transducers, and the distributions on them."""

from collections.abc import Sequence
from typing import Optional

from torch import Tensor

from icefall_kd.core.frames import make_pad_mask, pack_path, pack_topk
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.decoding import DecodeOptions, decode
from icefall_kd.teachers.base import TeacherOutput
from icefall_kd.transducer.bigram import fuse_bigram
from icefall_kd.transducer.field_encoder import Encoded, ModelEnsemble
from icefall_kd.transducer.path import best_path, previous_tokens

# Kind of an output -> head of the model that computes it.
HEAD_OF_KIND = {"ctc": "ctc", "path": "transducer"}


class BestPaths:
    """Computes the outputs of kind "path" of a teacher.

    The path is the most probable alignment of the transcript.  If an utterance has no
    transcript, or one with more tokens than the audio has frames, the path is the most
    probable alignment of a hypothesis: the best one of the first model's beam search.

    Args:
      models:    one or more transducers over one vocabulary.
      tokenizer: of that vocabulary.
      topk:      number of tokens to store in a frame, k.
      beam:      number of hypotheses in the search.
      lm:        (V, V) log-probabilities of a bigram, or None.  It is fused into the
                 distributions on the path, not into the search; see
                 :func:`icefall_kd.transducer.bigram.fuse_bigram`.
      lm_scale:  weight of the bigram.
    """

    def __init__(
        self,
        models: ModelEnsemble,
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
        """Return frames of kind "path", (N, T, 2 k + 2) float32.

        Args:
          encoded: (N, T, C) float32, encoder output of each model.
          lens:    (N,) int64, valid frames.
          texts:   N transcripts, "" for an utterance without one.
        Raises:
          ValueError: if the numbers of transcripts and utterances differ.
        """
        if len(texts) != len(lens):
            raise ValueError(
                f"{len(texts)} transcripts for {len(lens)} utterances. Give one for "
                'each utterance, "" if it has none'
            )
        emitted = self._find_paths(encoded, lens, texts)
        log_probs = self.models.score_path(encoded, emitted)
        if self.lm is not None:
            log_probs = fuse_bigram(
                log_probs, previous_tokens(emitted), self.lm, self.lm_scale
            )
        x = pack_path(emitted, pack_topk(log_probs, self.topk))
        mask = make_pad_mask(lens, x.size(1)).unsqueeze(-1)
        return TeacherOutput(x.masked_fill(mask, 0.0), lens)

    def _find_paths(
        self, encoded: Encoded, lens: Tensor, texts: Sequence[str]
    ) -> Tensor:
        """Return the token emitted in each frame, (N, T) int64, 0 for the blank."""
        emitted = lens.new_zeros(encoded[0].shape[:2])
        for n, (frames, text) in enumerate(zip(lens.tolist(), texts)):
            one = [x[n : n + 1, :frames] for x in encoded]
            tokens = self.tokenizer.encode(text) if text else []
            if not tokens or len(tokens) > frames:
                model = self.models.models[0]
                found = decode(model, one[0], lens[n : n + 1], self.search)
                tokens = found[0].tokens
            lattice = self.models.score_lattice(one, tokens)
            emitted[n, :frames] = best_path(lattice, tokens)
        return emitted
