"""Decoding: searches over encoder output, with full context or in chunks.

:data:`DECODERS` maps the name of each method to its class.
"""

import torch
from torch import Tensor, nn

from icefall_kd.decoding.beam_search import GreedySearch, ModifiedBeamSearch
from icefall_kd.decoding.ctc_hlg_search import CtcHlgSearch
from icefall_kd.decoding.ctc_search import CtcGreedySearch, CtcPrefixBeamSearch
from icefall_kd.decoding.fast_beam_search import FastBeamSearch
from icefall_kd.decoding.search import DecodeOptions, Hypothesis, Search

DECODERS: dict[str, type[Search]] = {
    "greedy_search": GreedySearch,
    "modified_beam_search": ModifiedBeamSearch,
    "fast_beam_search": FastBeamSearch,
    "ctc_greedy_search": CtcGreedySearch,
    "ctc_prefix_beam_search": CtcPrefixBeamSearch,
    "ctc_hlg": CtcHlgSearch,
}
# head -> the search that PyTorch, ONNX Runtime and sherpa-onnx all support
GREEDY_METHODS = {"transducer": "greedy_search", "ctc": "ctc_greedy_search"}

__all__ = [
    "DECODERS",
    "GREEDY_METHODS",
    "DecodeOptions",
    "Hypothesis",
    "decode",
    "get_search_class",
    "make_search",
]


def get_search_class(method: str) -> type[Search]:
    """Return the class of a method, for example of "greedy_search".

    Raises:
      ValueError: if the method is unknown.
    """
    if method not in DECODERS:
        raise ValueError(
            f"unknown decoding method {method!r}. Available: {', '.join(DECODERS)}"
        )
    return DECODERS[method]


def make_search(model: nn.Module, batch_size: int, options: DecodeOptions) -> Search:
    """Return a new search with ``options.method`` over ``batch_size`` utterances.

    Raises:
      ValueError: if the method is unknown, needs a head that the model lacks, or does
        not support hotwords.
    """
    return get_search_class(options.method)(model, batch_size, options)


@torch.no_grad()
def decode(
    model: nn.Module, encoder_out: Tensor, lens: Tensor, options: DecodeOptions
) -> list[Hypothesis]:
    """Decode a batch of complete utterances.

    Args:
      model: in eval mode; the ``ctc_*`` methods use ``ctc_output``, the others
        ``decoder`` and ``joiner``.
      encoder_out: (N, T, D) float32.
      lens: (N,) int64, valid frames (40 ms each), 0 <= lens <= T, in any order.
    Returns:
      N hypotheses in the order of the batch.
    Raises:
      ValueError: as :func:`make_search`, or if the shapes disagree.
    """
    order = torch.argsort(lens, descending=True, stable=True)
    search = make_search(model, len(order), options)
    search.advance(encoder_out[order], lens[order])
    search.finish()
    found = search.hypotheses()
    return [found[i] for i in torch.argsort(order).tolist()]
