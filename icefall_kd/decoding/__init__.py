"""From encoder output to words: searches, streaming, scoring.

One signature, ``decode(model, encoder_out, lens, options)``; :data:`DECODERS` names
every method.
"""

from typing import Dict, List, Type

import torch
from torch import Tensor, nn

from icefall_kd.decoding.beam import ModifiedBeamSearch
from icefall_kd.decoding.greedy import GreedySearch
from icefall_kd.decoding.hypothesis import DecodeOptions, Hypothesis
from icefall_kd.decoding.search import Search

DECODERS: Dict[str, Type[Search]] = {
    "greedy_search": GreedySearch,
    "modified_beam_search": ModifiedBeamSearch,
}

__all__ = ["DECODERS", "DecodeOptions", "Hypothesis", "decode", "make_search"]


def make_search(model: nn.Module, batch_size: int, options: DecodeOptions) -> Search:
    """Start the search that ``options.method`` names over ``batch_size`` utterances.

    Raises:
      ValueError: if the method is unknown; the message lists the known ones.
    """
    if options.method not in DECODERS:
        raise ValueError(
            f"unknown decoding method {options.method!r}; known: {sorted(DECODERS)}"
        )
    return DECODERS[options.method](model, batch_size, options)


@torch.no_grad()
def decode(
    model: nn.Module, encoder_out: Tensor, lens: Tensor, options: DecodeOptions
) -> List[Hypothesis]:
    """Search a batch of complete utterances.

    Args:
      model: has ``decoder`` and ``joiner``, in eval mode.
      encoder_out: (N, T, D) float32, before ``joiner.encoder_proj``.
      lens: (N,) int64, valid frames (40 ms each), 0 <= lens <= T, in any order.
      options: see :class:`DecodeOptions`.
    Returns:
      N hypotheses in the order of the batch.
    Raises:
      ValueError: if the method is unknown or the shapes disagree.
    """
    order = torch.argsort(lens, descending=True, stable=True)
    search = make_search(model, len(order), options)
    search.advance(encoder_out[order], lens[order])
    found = search.hypotheses()
    return [found[i] for i in torch.argsort(order).tolist()]
