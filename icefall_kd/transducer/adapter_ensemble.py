"""Adapters that speak as one: the mean of their distributions, node by node."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from icefall_kd import BLANK_ID
from icefall_kd.transducer.adapter import AdaptedModel
from icefall_kd.transducer.path import on_path

Encoded = Sequence[Tensor]  # of each model (N, T, C)


class AdapterEnsemble:
    """One or more recognisers over teachers' fields, of one vocabulary.

    Frames of CTC heads and nodes of transducers are the same for all of them, since all
    hear at the times of a student's frames.  Spikes of CTC heads need not fall into the
    same frames; on a path that all of them walk, nothing need be aligned.
    Source: an ensemble's mean at the nodes of one path, essence knowledge distillation,
    2019, arXiv:1906.10834.

    Attributes:
      fields: that a batch must carry.
    """

    def __init__(self, models: Sequence[AdaptedModel]) -> None:
        self.models = list(models)
        self.fields = tuple(dict.fromkeys(f for m in models for f in m.fields))

    def encode(self, batch: Mapping[str, Any]) -> tuple[list[Tensor], Tensor]:
        """Return what each model's encoder says of a batch, and the lengths (N,)."""
        heard = [model.forward_encoder(*model.inputs(batch)) for model in self.models]
        return [x for x, _ in heard], heard[0][1]

    def ctc(self, encoded: Encoded) -> Tensor:
        """Return the mean of the CTC heads, (N, T, V) log-probabilities."""
        return _mean([m.ctc_output(x) for m, x in zip(self.models, encoded)])

    def lattice(self, encoded: Encoded, tokens: Sequence[int]) -> Tensor:
        """Return the mean at every node of one utterance, (T, U + 1, V).

        Args:
          encoded: of the utterance, each (1, T, C).
          tokens:  its U tokens.
        """
        labels = torch.tensor([[BLANK_ID, *tokens]], device=encoded[0].device)
        found = []
        for model, x in zip(self.models, encoded):
            decoder_out = model.decoder(labels)
            logits = model.joiner(x.unsqueeze(2), decoder_out.unsqueeze(1))
            found.append(logits[0].log_softmax(-1))
        return _mean(found)

    def on_path(self, encoded: Encoded, emitted: Tensor) -> Tensor:
        """Return the mean at the nodes of paths, (N, T, V) log-probabilities.

        Args:
          emitted: (N, T) int64, token of each frame, 0 for the blank.
        """
        logits = [on_path(m, x, emitted)[0] for m, x in zip(self.models, encoded)]
        return _mean([each.log_softmax(-1) for each in logits])


def _mean(log_probs: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean probability; of one, itself to the bit."""
    return torch.stack(list(log_probs)).logsumexp(dim=0) - math.log(len(log_probs))
