"""Fast beam search: the best path of a lattice over the predictor's contexts.

Hypotheses whose last tokens are equal are one, so that a frame costs as many calls of
predictor and joiner as there are contexts, not hypotheses.  k2 keeps the lattices, all
utterances of a batch at once.
"""

from torch import Tensor, nn

from icefall_kd import BLANK_ID
from icefall_kd.decoding.ctc import silence_unk
from icefall_kd.decoding.hypothesis import DecodeOptions, Hypothesis
from icefall_kd.decoding.search import TransducerSearch
from icefall_kd.transducer.lattice import ContextLattices
from icefall_kd.transducer.predictor import NO_TOKEN


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
        self.lattices.advance(silence_unk(log_probs, self.options.unk_id))

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
