"""Where two fbanks of one prompt lead greedy search to two decisions, and why.

lhotse's features differ from sherpa-onnx's in the last digits, so that a decision may
flip, but only at a frame whose two best scores are closer than the features move them.
"""

from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor, nn

from icefall_kd import BLANK_ID, ENCODER_SHIFT
from icefall_kd.decoding import DecodeOptions, search_class
from icefall_kd.decoding.ctc import CtcGreedySearch
from icefall_kd.decoding.greedy import GreedySearch
from icefall_kd.decoding.setting import Chunking
from icefall_kd.decoding.streaming import encode_chunks

# Largest difference of two fbank values, natural log, that counts as rounding: in the
# quietest bins of quiet frames float32 leaves a few thousandths.
FEATURE_TOLERANCE = 0.01


@dataclass(frozen=True)
class FeatureFlip:
    """A prompt whose tokens depend on whose fbank was read.

    Attributes:
      frame, time: where the first decision flips (40 ms frames, s); None if none does.
      symbols: the two candidates there: from lhotse's and from sherpa-onnx's features.
      margin: between them with lhotse's features.
      shift: by which the features move the two scores against each other.
      feature_difference: the largest difference of two fbank values of the prompt.
    """

    cut_id: str
    frame: Optional[int]
    time: Optional[float]
    symbols: tuple[int, int]
    margin: float
    shift: float
    feature_difference: float

    @property
    def explained(self) -> bool:
        """Whether the features alone account for it."""
        return (
            self.frame is not None
            and self.margin <= self.shift
            and self.feature_difference <= FEATURE_TOLERANCE
        )


class _TransducerRecorder(GreedySearch):
    """Greedy search that keeps the logits of every frame."""

    def __init__(self, *arguments: Any):
        self.logits: list[Tensor] = []
        super().__init__(*arguments)

    def _logits(self, encoder_frame: Tensor, predicted: Tensor) -> Tensor:
        logits = super()._logits(encoder_frame, predicted)
        self.logits.append(logits[0])
        return logits


class _CtcRecorder(CtcGreedySearch):
    """The same over the CTC head."""

    def __init__(self, *arguments: Any):
        self.logits: list[Tensor] = []
        super().__init__(*arguments)

    def _step(self, log_probs: Tensor) -> None:
        self.logits.append(log_probs[0])
        super()._step(log_probs)


RECORDERS = {r.head: r for r in (_TransducerRecorder, _CtcRecorder)}


@torch.no_grad()
def greedy_logits(
    model: nn.Module,
    features: Tensor,
    options: DecodeOptions,
    chunking: Optional[Chunking],
) -> np.ndarray:
    """Return the logits (T, V) float32 that greedy search saw of fbank (F, 80)."""
    search = RECORDERS[search_class(options.method).head](model, 1, options)
    if chunking:
        chunks = encode_chunks(
            model, [features], chunking.chunk_size, chunking.left_context
        )
    else:
        model.encoder.set_chunk(-1, -1)
        lens = torch.tensor([features.size(0)])
        chunks = [model.forward_encoder(features[None], lens)]
    for encoder_out, lens in chunks:
        search.advance(encoder_out, lens)
    return torch.stack(search.logits).numpy()


def find_flip(
    cut_id: str,
    logits: tuple[np.ndarray, np.ndarray],
    unk_id: Optional[int],
    feature_difference: float,
) -> FeatureFlip:
    """Find where greedy search decides otherwise with other features, and how closely.

    Args:
      logits: (T, V) each, of lhotse's and of sherpa-onnx's features.  Up to the first
        flip both were computed with the same context, so they can be compared there.
    """
    silent = (BLANK_ID, unk_id)
    for t, (a, b) in enumerate(zip(*logits)):
        i, j = int(a.argmax()), int(b.argmax())
        if i == j or (i in silent and j in silent):
            continue
        margin = float(a[i] - a[j])
        shift = float((a[i] - a[j]) - (b[i] - b[j]))
        time = round(t * ENCODER_SHIFT, 2)
        return FeatureFlip(cut_id, t, time, (i, j), margin, shift, feature_difference)
    nan = float("nan")
    return FeatureFlip(cut_id, None, None, (-1, -1), nan, nan, feature_difference)
