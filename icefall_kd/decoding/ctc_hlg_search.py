"""Search over a CTC head with a decoding graph, such as an ``HLG.fst``.

kaldi-decoder's FasterDecoder finds the best path.  sherpa-onnx runs the same code for
its option ``ctc_graph``, with the same limits.
"""

from typing import Any

from torch import Tensor, nn

from icefall_kd import BLANK_ID
from icefall_kd.decoding.ctc_search import CtcSearch
from icefall_kd.decoding.search import DecodeOptions, Hypothesis

MAX_ACTIVE = 3000  # states kept per frame; sherpa-onnx: ctc_max_active


class CtcHlgSearch(CtcSearch):
    """Find the best path of frames and ``options.graph`` together."""

    packages = ("kaldi_decoder",)
    uses_graph = True

    def __init__(self, model: nn.Module, batch_size: int, options: DecodeOptions):
        super().__init__(model, batch_size, options)
        from kaldi_decoder import FasterDecoder, FasterDecoderOptions

        limits = FasterDecoderOptions(max_active=MAX_ACTIVE)
        self.decoders = [
            FasterDecoder(options.graph.fst, limits) for _ in range(batch_size)
        ]
        for decoder in self.decoders:
            decoder.init_decoding()

    def _step(self, log_probs: Tensor) -> None:
        from kaldi_decoder import DecodableCtc

        frames = log_probs.detach().cpu().numpy()
        for row, decoder in enumerate(self.decoders[: len(frames)]):
            first = decoder.num_frames_decoded()
            decoder.advance_decoding(DecodableCtc(frames[row : row + 1], first))

    def hypotheses(self) -> list[Hypothesis]:
        return [_best_path(decoder) for decoder in self.decoders]


def _best_path(decoder: Any) -> Hypothesis:
    """Return the best hypothesis of a ``FasterDecoder``; empty if it has no path."""
    from kaldifst import get_linear_symbol_sequence

    is_found, path = decoder.get_best_path()
    if not is_found:
        return Hypothesis()
    _, labels, _, weight = get_linear_symbol_sequence(path)
    hyp = Hypothesis(score=-(weight.value1 + weight.value2))
    before = BLANK_ID
    for frame, label in enumerate(labels):
        token = label - 1
        if token not in (BLANK_ID, before):
            hyp.tokens.append(token)
            hyp.timestamps.append(frame)
        before = token
    return hyp
