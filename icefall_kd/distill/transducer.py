"""Term ``ctc``: the CTC loss on the transcripts.

Term ``transducer``: the pruned RNN-T loss on the transcripts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from icefall_kd.core.config import ModelConfig
from icefall_kd.core.frames import Batch
from icefall_kd.distill.term import StudentOutput, TermOutput, skipped_texts
from icefall_kd.transducer.loss import ctc_loss, has_alignment, pruned_transducer_loss


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


@dataclass(frozen=True)
class TransducerConfig:
    """Options of the ``transducer`` term.

    Attributes:
      weight: of the term in the loss.
      prune_range: labels scored at each frame, at least 2.
      am_scale: share of the acoustic part in the simple loss, 0 to 1.
      lm_scale: share of the language part in the simple loss, 0 to 1.
      simple_scale: weight of the simple loss after the warm-up.
      warm_steps: updates over which the simple loss goes from 1 to simple_scale
        and the pruned loss from 0.1 to 1, since early pruning bounds are noise.
      label_mask_prob: of hiding a label from the predictor in training, 0 to 1.
    """

    weight: float = 1.0
    prune_range: int = 5
    am_scale: float = 0.0
    lm_scale: float = 0.25
    simple_scale: float = 0.5
    warm_steps: int = 2000
    label_mask_prob: float = 0.0


class TransducerTerm:
    """Warmed-up sum of the simple and the pruned loss; source: see the loss."""

    name = "transducer"
    options = TransducerConfig
    needs_stacks = False
    needs_text = True
    frame_targets = False
    fields = ()
    packages = ("k2",)
    trains = ("decoder", "joiner", "simple_am_proj", "simple_lm_proj")

    def __init__(self, config: TransducerConfig) -> None:
        if config.prune_range < 2:
            raise ValueError(
                f"terms.transducer.prune_range is {config.prune_range}; a path needs 2"
            )
        self.config = config

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> None:
        """The model has what this term needs."""

    def scales(self, step: int) -> tuple[float, float]:
        """Return the weights of the simple and the pruned loss at ``step``."""
        done = min(1.0, step / max(1, self.config.warm_steps))
        return 1.0 - done * (1.0 - self.config.simple_scale), 0.1 + 0.9 * done

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Sum the loss over the utterances that have a transcript that fits."""
        chosen = has_alignment(batch["tokens"], student.lens)
        rows = chosen.nonzero().flatten()
        skipped = skipped_texts(batch["tokens"], ~chosen)
        if len(rows) == 0:
            zero = student.encoder_out.new_zeros((), dtype=torch.float32)
            return TermOutput(zero, 0, skipped=skipped)
        lens = student.lens[rows]
        encoder_out = student.encoder_out[rows, : int(lens.max())]
        training = student.model.training
        simple, pruned = pruned_transducer_loss(
            student.model,
            encoder_out,
            lens,
            [batch["tokens"][i] for i in rows.tolist()],
            prune_range=self.config.prune_range,
            am_scale=self.config.am_scale,
            lm_scale=self.config.lm_scale,
            label_mask_prob=self.config.label_mask_prob if training else 0.0,
            reduction="none",
        )
        simple_scale, pruned_scale = self.scales(step)
        bad = ~torch.isfinite(simple.detach() + pruned.detach())
        frames = int(lens.sum())
        return TermOutput(
            sum=simple_scale * simple.sum() + pruned_scale * pruned.sum(),
            count=frames,
            extras={
                "simple": (simple.detach().sum(), frames),
                "pruned": (pruned.detach().sum(), frames),
            },
            suspects=tuple(rows[bad].tolist()),
            skipped=skipped,
        )
