"""From encoder output to words: searches, streaming, scoring.

One signature, ``decode(model, encoder_out, lens, options)``; :data:`DECODERS` names
every method.
"""

import torch
from torch import Tensor, nn

from icefall_kd.decoding.beam_search import GreedySearch, ModifiedBeamSearch
from icefall_kd.decoding.ctc_search import CtcGreedySearch, CtcPrefixBeamSearch
from icefall_kd.decoding.fast_beam_search import FastBeamSearch
from icefall_kd.decoding.search import DecodeOptions, Hypothesis, Search

DECODERS: dict[str, type[Search]] = {
    "greedy_search": GreedySearch,
    "modified_beam_search": ModifiedBeamSearch,
    "fast_beam_search": FastBeamSearch,
    "ctc_greedy_search": CtcGreedySearch,
    "ctc_prefix_beam_search": CtcPrefixBeamSearch,
}
# The search of each head that every engine runs.
GREEDY_METHODS = {"transducer": "greedy_search", "ctc": "ctc_greedy_search"}

__all__ = [
    "DECODERS",
    "GREEDY_METHODS",
    "DecodeOptions",
    "Hypothesis",
    "decode",
    "make_search",
    "get_search_class",
]


def get_search_class(method: str) -> type[Search]:
    """Return the search of this name.

    Raises:
      ValueError: if the method is unknown; the message lists the known ones.
    """
    if method not in DECODERS:
        raise ValueError(
            f"unknown decoding method {method!r}; known: {sorted(DECODERS)}"
        )
    return DECODERS[method]


def make_search(model: nn.Module, batch_size: int, options: DecodeOptions) -> Search:
    """Start the search that ``options.method`` names over ``batch_size`` utterances.

    Raises:
      ValueError: if the method is unknown, or the model lacks the head it reads.
    """
    return get_search_class(options.method)(model, batch_size, options)


@torch.no_grad()
def decode(
    model: nn.Module, encoder_out: Tensor, lens: Tensor, options: DecodeOptions
) -> list[Hypothesis]:
    """Search a batch of complete utterances.

    Args:
      model: has ``decoder`` and ``joiner``, or ``ctc_output`` for the ``ctc_*``
        methods, in eval mode.
      encoder_out: (N, T, D) float32, as the encoder gives it.
      lens: (N,) int64, valid frames (40 ms each), 0 <= lens <= T, in any order.
      options: see :class:`DecodeOptions`.
    Returns:
      N hypotheses in the order of the batch.
    Raises:
      ValueError: if the method is unknown, the model lacks the head it reads, or the
        shapes disagree.
    """
    order = torch.argsort(lens, descending=True, stable=True)
    search = make_search(model, len(order), options)
    search.advance(encoder_out[order], lens[order])
    search.finish()
    found = search.hypotheses()
    return [found[i] for i in torch.argsort(order).tolist()]
