"""Term ``ctc``: the CTC loss on the transcripts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from icefall_kd.config import ModelConfig
from icefall_kd.distill.term import Batch, StudentOutput, TermOutput
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
    needs_text = True
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
        chosen = has_alignment(batch["tokens"], student.lens)
        # Repeated tokens need a blank between them, hence frames of their own.
        needed = [
            len(t) + sum(a == b for a, b in zip(t, t[1:])) for t in batch["tokens"]
        ]
        chosen &= student.lens >= torch.tensor(needed, device=chosen.device)
        rows = chosen.nonzero().flatten()
        skipped = len(chosen) - len(rows)
        if len(rows) == 0:
            zero = student.encoder_out.new_zeros((), dtype=torch.float32)
            return TermOutput(zero, 0, skipped=skipped)
        log_probs = student.model.ctc_output(student.encoder_out[rows])
        tokens = [batch["tokens"][i] for i in rows.tolist()]
        loss = ctc_loss(log_probs, student.lens[rows], tokens, reduction="none")
        bad = ~torch.isfinite(loss.detach())
        return TermOutput(
            sum=loss.sum(),
            count=int(student.lens[rows].sum()),
            suspects=tuple(rows[bad].tolist()),
            skipped=skipped,
        )
