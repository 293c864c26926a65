"""Terms ``transducer`` and ``ctc``: pruned RNN-T and CTC loss on the transcripts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from icefall_kd.core.frames import Batch
from icefall_kd.distill.term import (
    StudentOutput,
    Term,
    TermOutput,
    find_non_finite,
    list_skipped_texts,
    zero_output,
)
from icefall_kd.transducer.loss import ctc_loss, has_alignment, pruned_transducer_loss
from icefall_kd.transducer.rnnt import Backend


@dataclass(frozen=True)
class CtcConfig:
    """Options of the ``ctc`` term.

    Attributes:
      weight: weight of the term in the loss; 0 turns it off.
    """

    weight: float = 0.2


class CtcTerm(Term):
    """CTC loss of the model's CTC head."""

    name = "ctc"
    options = CtcConfig
    frame_targets = False
    needs_text = True
    trains = ("ctc_output",)

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Sum the loss over the utterances with a transcript that fits the audio."""
        is_used = select_ctc_rows(batch["tokens"], student.lens_cpu)
        skipped = list_skipped_texts(batch["tokens"], ~is_used)
        rows = is_used.nonzero().flatten()
        if len(rows) == 0:
            return zero_output(student, skipped)
        lens = student.lens_cpu[rows]
        log_probs = student.model.ctc_output(student.encoder_out[rows])
        texts = [batch["tokens"][i] for i in rows.tolist()]
        loss = ctc_loss(log_probs, lens, texts, reduction="none")
        return TermOutput(
            sum=loss.sum(),
            count=int(lens.sum()),
            suspects=tuple(rows[find_non_finite(loss)].tolist()),
            skipped=skipped,
        )


def select_ctc_rows(tokens: Sequence[Sequence[int]], lens: Tensor) -> Tensor:
    """Return whether each transcript can be aligned by CTC, (N,) bool.

    Args:
      tokens: N lists of token ids, empty for an utterance without transcript.
      lens:   (N,) int64, valid frames.
    """
    # Two equal tokens in a row need a frame of blank between them.
    needed = [len(t) + sum(a == b for a, b in zip(t, t[1:])) for t in tokens]
    fits = lens >= torch.tensor(needed, device=lens.device)
    return has_alignment(tokens, lens) & fits


@dataclass(frozen=True)
class TransducerConfig:
    """Options of the ``transducer`` term.

    Attributes:
      weight: weight of the term in the loss; 0 turns it off.
      prune_range: number of label positions scored in each frame, at least 2.
      am_scale: share of the acoustic part in the simple loss, 0 to 1.
      lm_scale: share of the language part in the simple loss, 0 to 1.
      simple_scale: weight of the simple loss after the warm-up.
      warm_steps: updates over which the weight of the simple loss changes from 1 to
        simple_scale, and that of the pruned loss from 0.1 to 1.  Early pruning bounds
        are random.
      label_mask_prob: probability of masking a label for the predictor in training.
      backend: "k2", "torch", or "auto" for k2 where it is installed.
    """

    weight: float = 1.0
    prune_range: int = 5
    am_scale: float = 0.0
    lm_scale: float = 0.25
    simple_scale: float = 0.5
    warm_steps: int = 2000
    label_mask_prob: float = 0.0
    backend: Backend = "auto"


class TransducerTerm(Term):
    """Weighted sum of the simple and the pruned RNN-T loss."""

    name = "transducer"
    options = TransducerConfig
    frame_targets = False
    needs_text = True
    trains = ("decoder", "joiner", "simple_am_proj", "simple_lm_proj")

    def __init__(self, config: TransducerConfig) -> None:
        """Check the options."""
        if config.prune_range < 2:
            raise ValueError(
                f"terms.transducer.prune_range: {config.prune_range} is below 2, so a "
                "path cannot emit a token. Use 2 or more"
            )
        super().__init__(config)
        self.packages = ("k2",) if config.backend == "k2" else ()

    def scales(self, step: int) -> tuple[float, float]:
        """Return the weights of the simple and the pruned loss after some updates."""
        done = min(1.0, step / max(1, self.config.warm_steps))
        return 1.0 - done * (1.0 - self.config.simple_scale), 0.1 + 0.9 * done

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Sum the loss over the utterances with a transcript that fits the audio."""
        is_used = has_alignment(batch["tokens"], student.lens_cpu)
        skipped = list_skipped_texts(batch["tokens"], ~is_used)
        rows = is_used.nonzero().flatten()
        if len(rows) == 0:
            return zero_output(student, skipped)
        lens = student.lens_cpu[rows]
        simple, pruned = pruned_transducer_loss(
            student.model,
            student.encoder_out[rows, : int(lens.max())],
            lens,
            [batch["tokens"][i] for i in rows.tolist()],
            prune_range=self.config.prune_range,
            am_scale=self.config.am_scale,
            lm_scale=self.config.lm_scale,
            label_mask_prob=(
                self.config.label_mask_prob if student.model.training else 0.0
            ),
            reduction="none",
            backend=self.config.backend,
        )
        simple_scale, pruned_scale = self.scales(step)
        frames = int(lens.sum())
        return TermOutput(
            sum=simple_scale * simple.sum() + pruned_scale * pruned.sum(),
            count=frames,
            extras={
                "simple": (simple.detach().sum(), frames),
                "pruned": (pruned.detach().sum(), frames),
            },
            suspects=tuple(rows[find_non_finite(simple + pruned)].tolist()),
            skipped=skipped,
        )
