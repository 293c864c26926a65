"""Term ``ctc``: the CTC loss on the transcripts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from icefall_kd.config import ModelConfig
from icefall_kd.distill.term import (
    Batch,
    StudentOutput,
    TermOutput,
    skipped_texts,
)
from icefall_kd.transducer.loss import ctc_loss, has_alignment


@dataclass(frozen=True)
class CtcConfig:
    """Options of the ``ctc`` term.

    Attributes:
      weight: of the term in the loss.
    """

    weight: float = 0.2


class CtcTerm:
    """CTC on the model's own CTC head; source: see the loss."""

    name = "ctc"
    options = CtcConfig
    needs_stacks = False
    needs_text = True
    frame_targets = False
    fields = ()
    trains = ("ctc_output",)

    def __init__(self, config: CtcConfig) -> None:
        self.config = config

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> None:
        """The model has what this term needs."""

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Sum the loss over the utterances that have a transcript that fits."""
        chosen = ctc_rows(batch["tokens"], student.lens)
        rows = chosen.nonzero().flatten()
        skipped = skipped_texts(batch["tokens"], ~chosen)
        if len(rows) == 0:
            zero = student.encoder_out.new_zeros((), dtype=torch.float32)
            return TermOutput(zero, 0, skipped=skipped)
        log_probs = student.model.ctc_output(student.encoder_out[rows])
        loss = ctc_sum(log_probs, student.lens[rows], batch["tokens"], rows)
        bad = ~torch.isfinite(loss.detach())
        return TermOutput(
            sum=loss.sum(),
            count=int(student.lens[rows].sum()),
            suspects=tuple(rows[bad].tolist()),
            skipped=skipped,
        )


def ctc_rows(tokens: Sequence[Sequence[int]], lens: Tensor) -> Tensor:
    """Return which utterances have a transcript that fits, (N,) bool.

    Args:
      tokens: N lists of ids; empty where there is no transcript.
      lens:   (N,) int64, valid frames.
    """
    chosen = has_alignment(tokens, lens)
    # Repeated tokens need a blank between them, hence frames of their own.
    needed = [len(t) + sum(a == b for a, b in zip(t, t[1:])) for t in tokens]
    return chosen & (lens >= torch.tensor(needed, device=chosen.device))


def ctc_sum(
    log_probs: Tensor, lens: Tensor, tokens: Sequence[Sequence[int]], rows: Tensor
) -> Tensor:
    """Return the CTC loss (M,) of the utterances ``rows`` of a batch, in nats.

    Args:
      log_probs: (M, T, V) float, of these rows.
      lens:      (M,) int64, of these rows.
      tokens:    of the whole batch.
    """
    chosen = [tokens[i] for i in rows.tolist()]
    return ctc_loss(log_probs, lens, chosen, reduction="none")
