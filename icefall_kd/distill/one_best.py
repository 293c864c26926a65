"""Term ``one_best``: a teacher's distributions on its one-best path.

    sum_t KL( p_teacher(. | t, u_t) || p_student(. | t + shift, u_t) )

over the nodes (t, u_t) of the teacher's most probable path, one in each frame.  On
audio without transcript the path is that of what the teacher recognised.  A student
that sees chunks knows a word later than its teacher: ``shift`` lets it lag there.
Source: one-best path distillation for RNN-T, 2021, arXiv:2110.03334; one node a frame
(``transducer.path``) and the divergence with the tail as one token are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from icefall_kd.core.config import ModelConfig
from icefall_kd.core.frames import Batch, make_pad_mask, unpack_path, unpack_topk
from icefall_kd.distill.losses import divergence
from icefall_kd.distill.term import (
    StudentOutput,
    TermOutput,
    check_kind,
    delayed,
    has_targets,
    nothing,
    skipped_targets,
)
from icefall_kd.transducer.path import score_path


@dataclass(frozen=True)
class OneBestConfig:
    """Options of the ``one_best`` term.

    Attributes:
      weight: of the term in the loss.
      teacher: Shar field of kind ``path``.
      shift: frames of 40 ms that the student may lag behind the teacher in batches
        with chunks; with full context there is none.
      warm_steps: updates over which the term comes in, from 0.
    """

    weight: float = 1.0
    teacher: str = ""
    shift: int = 0
    warm_steps: int = 0


class OneBestTerm:
    """See the module's docstring."""

    name = "one_best"
    options = OneBestConfig
    needs_stacks = False
    needs_text = False
    frame_targets = True
    trains = ("decoder", "joiner")
    taught = "kl"

    def __init__(self, config: OneBestConfig) -> None:
        """Check the options.

        Raises:
          ValueError: if there is no teacher, or a number is negative.
        """
        if not config.teacher:
            raise ValueError(
                "terms.one_best.teacher is empty; name a field of kind path"
            )
        if config.shift < 0 or config.warm_steps < 0:
            raise ValueError(
                "terms.one_best: shift and warm_steps must not be negative"
            )
        self.config = config
        self.fields = (config.teacher,)

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> None:
        """Check the field; the model has what this term needs.

        Raises:
          ValueError: if the field is of another kind.
        """
        check_kind("terms.one_best.teacher", field_infos[self.config.teacher], "path")

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Sum the divergence over the nodes of the paths."""
        target = batch["fields"][self.config.teacher]
        if not has_targets(target):
            return nothing(student)
        encoder_out, x, lens = delayed(
            student.encoder_out, student.lens, target, student.lag(self.config.shift)
        )
        mask = make_pad_mask(lens, x.size(1))
        emitted, frames = unpack_path(x)
        # The path beyond the student's last frame is not walked, and has no nodes.
        logits, _ = score_path(student.model, encoder_out, emitted.masked_fill(mask, 0))
        log_probs = logits.float().log_softmax(dim=-1)
        per_frame = divergence(log_probs, *unpack_topk(frames)).masked_fill(mask, 0.0)
        bad = ~torch.isfinite(per_frame.detach()).all(dim=1)
        value = per_frame.sum()
        return TermOutput(
            sum=self.scale(step) * value,
            count=int(lens.sum()),
            extras={"kl": (value.detach(), int(lens.sum()))},
            suspects=tuple(bad.nonzero().flatten().tolist()),
            skipped=skipped_targets(target["lens"].to(lens.device) > 0, lens),
        )

    def scale(self, step: int) -> float:
        """Return the share of the term that counts at ``step``."""
        return (
            min(1.0, step / self.config.warm_steps) if self.config.warm_steps else 1.0
        )
