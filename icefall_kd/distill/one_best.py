"""Term ``one_best``: divergence from a teacher's transducer on its one-best path.

    sum_t KL( p_teacher(. | t, u_t) || p_student(. | t + shift, u_t) )

over the nodes (t, u_t) of the teacher's most probable path, one in each frame.  The
path emits the tokens of the transcript, or of the teacher's hypothesis for audio
without transcript.  A student with chunks emits a token later than its teacher;
``shift`` compares later frames of the student.

Source: one-best path distillation for RNN-T, 2021, arXiv:2110.03334; one node in each
frame (``transducer.path``) and the tail as one token are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from icefall_kd.core.config import ModelConfig
from icefall_kd.core.frames import Batch, make_pad_mask, unpack_path, unpack_topk
from icefall_kd.distill.losses import divergence
from icefall_kd.distill.term import (
    StudentOutput,
    Term,
    TermOutput,
    check_kind,
    check_not_negative,
    find_non_finite,
    find_targets,
    list_skipped_targets,
    match_frames,
    zero_output,
)
from icefall_kd.transducer.path import score_path


@dataclass(frozen=True)
class OneBestConfig:
    """Options of the ``one_best`` term.

    Attributes:
      weight: weight of the term in the loss; 0 turns it off.
      teacher: Shar field of kind ``path``.
      shift: frames of 40 ms by which the student lags behind the teacher in batches
        with chunks.
      warm_steps: updates over which the weight rises linearly from 0 to ``weight``.
    """

    weight: float = 1.0
    teacher: str = ""
    shift: int = 0
    warm_steps: int = 0


class OneBestTerm(Term):
    """Divergence on a teacher's one-best path; see the module's docstring."""

    name = "one_best"
    options = OneBestConfig
    frame_targets = True
    trains = ("decoder", "joiner")
    teacher_extra = "kl"

    def __init__(self, config: OneBestConfig) -> None:
        """Check the options."""
        if not config.teacher:
            raise ValueError(
                "terms.one_best.teacher is empty. Give a field of kind path"
            )
        check_not_negative(config, "terms.one_best", "shift", "warm_steps")
        super().__init__(config)
        self.delay = config.shift
        self.fields = (config.teacher,)

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> None:
        """Check the field."""
        check_kind("terms.one_best.teacher", field_infos[self.config.teacher], "path")

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Sum the divergence over the nodes of the paths."""
        field = self.config.teacher
        has_target = find_targets(batch["fields"][field], student.lens.device)
        if not has_target.any():
            return zero_output(student)
        encoder_out, x, lens = match_frames(
            student.encoder_out, student.lens, batch, field, student.lag(self.delay)
        )
        mask = make_pad_mask(lens, x.size(1))
        emitted, frames = unpack_path(x)
        # Frames that are not compared must not emit tokens.
        logits, _ = score_path(student.model, encoder_out, emitted.masked_fill(mask, 0))
        log_probs = logits.float().log_softmax(dim=-1)
        per_frame = divergence(log_probs, *unpack_topk(frames)).masked_fill(mask, 0.0)
        value, count = per_frame.sum(), int(lens.sum())
        return TermOutput(
            sum=self.scale(step) * value,
            count=count,
            extras={"kl": (value.detach(), count)},
            suspects=tuple(find_non_finite(per_frame)),
            skipped=list_skipped_targets(has_target, lens),
        )

    def scale(self, step: int) -> float:
        """Return the factor of the term after ``step`` updates, 0 to 1."""
        if not self.config.warm_steps:
            return 1.0
        return min(1.0, step / self.config.warm_steps)
