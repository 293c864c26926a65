"""Term ``inter_ctc``: CTC heads on intermediate stacks, each with a teacher.

    sum_i a_i * ( L_ctc(p_i, y) + lambda * sum_t d(p_teacher[t], p_i[t]) )

The heads i are on stacks of the encoder; ``final`` adds the model's CTC head.  a_i is 1
for the final head and 1 / (number of stacks) for the others.  Only training uses the
heads on stacks.

Source: Inter-KD, 2022, arXiv:2211.15075 (the teacher's softmax as the target of every
head, squared distance, lambda 0.25; the weights a_i are ours).  Without a teacher:
intermediate CTC, Lee and Watanabe, 2021, arXiv:2102.03216.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Optional

from torch import Tensor, nn

from icefall_kd.core.config import ModelConfig
from icefall_kd.core.frames import (
    Batch,
    average_frame_pairs,
    make_pad_mask,
    unpack_topk,
)
from icefall_kd.distill.losses import DISTANCES
from icefall_kd.distill.term import (
    StudentOutput,
    Term,
    TermOutput,
    check_kind,
    check_not_negative,
    find_non_finite,
    find_targets,
    list_skipped_texts,
    match_frames,
    zero_output,
)
from icefall_kd.distill.transducer import select_ctc_rows
from icefall_kd.transducer.loss import ctc_loss
from icefall_kd.transducer.model import get_stack_dims
from icefall_kd.zipformer.cpu.blocks import LogSoftmax


@dataclass(frozen=True)
class InterCtcConfig:
    """Options of the ``inter_ctc`` term.

    Attributes:
      weight: weight of the term in the loss; 0 turns it off.
      stacks: stacks of the encoder with a head, counted from 0, or negative from the
        end.
      final: whether the model's CTC head is one of the heads.
      teacher: Shar field of kind ``ctc``; None trains the heads without a teacher.
      kd_weight: lambda, weight of the distance to the teacher.
      distance: "l2" (squared distance of probabilities) or "kl" (divergence).
      delay: frames of 40 ms by which the student lags behind the teacher in batches
        with chunks.
    """

    weight: float = 1.0
    stacks: tuple[int, ...] = ()
    final: bool = True
    teacher: Optional[str] = None
    kd_weight: float = 0.25
    distance: Literal["l2", "kl"] = "l2"
    delay: int = 0


class InterCtcTerm(Term):
    """CTC heads on intermediate stacks; see the module's docstring."""

    name = "inter_ctc"
    options = InterCtcConfig
    frame_targets = True  # an instance without a teacher sets it to False
    trains = ("ctc_output",)  # () for an instance with final: false
    needs_text = True

    def __init__(self, config: InterCtcConfig) -> None:
        """Check the options."""
        if not config.stacks and not config.final:
            raise ValueError("terms.inter_ctc has no head. Set stacks or final: true")
        check_not_negative(config, "terms.inter_ctc", "delay", "kd_weight")
        super().__init__(config)
        self.delay = config.delay
        self.needs_stacks = bool(config.stacks)
        if not config.final:
            self.trains = ()
        self.frame_targets = bool(config.teacher)
        if config.teacher:
            self.fields = (config.teacher,)
            first = "final" if config.final else f"stack{config.stacks[0]}"
            self.teacher_extra = f"{first}_kd"

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> Optional[nn.Module]:
        """Return a CTC head for each stack."""
        for name in self.fields:
            check_kind("terms.inter_ctc.teacher", field_infos[name], "ctc")
        if not self.config.stacks:
            return None
        dims = get_stack_dims(
            model_config, self.config.stacks, "terms.inter_ctc.stacks"
        )
        return nn.ModuleDict(
            {
                str(stack): nn.Sequential(
                    nn.Dropout(0.1),
                    nn.Linear(dim, model_config.vocab_size),
                    LogSoftmax(dim=-1),
                )
                for stack, dim in zip(self.config.stacks, dims)
            }
        )

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Sum the losses of all heads.

        The CTC loss is over utterances with a transcript that fits the audio, the
        distance over utterances with a target.
        """
        config, lens = self.config, student.lens
        is_used = select_ctc_rows(batch["tokens"], lens)
        rows = is_used.nonzero().flatten()
        texts = [batch["tokens"][i] for i in rows.tolist()]
        has_targets, delay = False, student.lag(self.delay)
        if config.teacher and config.kd_weight:
            has_target = find_targets(batch["fields"][config.teacher], lens.device)
            has_targets = bool(has_target.any())
            is_used = is_used | (has_target & (lens > delay))
        total, extras = zero_output(student).sum, {}
        suspects: set[int] = set()
        for name, (scale, log_probs) in self._compute_heads(student).items():
            if texts:
                losses = ctc_loss(log_probs[rows], lens[rows], texts, reduction="none")
                total = total + scale * losses.sum()
                suspects.update(rows[find_non_finite(losses)].tolist())
                extras[f"{name}_ctc"] = (losses.detach().sum(), int(lens[rows].sum()))
            if has_targets:
                per_frame, count = self._compute_distance(log_probs, lens, batch, delay)
                total = total + scale * config.kd_weight * per_frame.sum()
                suspects.update(find_non_finite(per_frame))
                extras[f"{name}_kd"] = (per_frame.detach().sum(), count)
        skipped = list_skipped_texts(batch["tokens"], ~is_used)
        return TermOutput(
            total, int(lens.sum()), extras, tuple(sorted(suspects)), skipped
        )

    def _compute_heads(self, student: StudentOutput) -> dict[str, tuple[float, Tensor]]:
        """Return head -> (a_i, log-probabilities (N, T, V))."""
        heads: dict[str, tuple[float, Tensor]] = {}
        if self.config.final:
            heads["final"] = (1.0, student.model.ctc_output(student.encoder_out))
        for stack in self.config.stacks:
            x = average_frame_pairs(student.stacks[stack])
            x = x[:, : student.encoder_out.size(1)]
            log_probs = student.heads[self.name][str(stack)](x)
            heads[f"stack{stack}"] = (1.0 / len(self.config.stacks), log_probs)
        return heads

    def _compute_distance(
        self, log_probs: Tensor, lens: Tensor, batch: Batch, delay: int
    ) -> tuple[Tensor, int]:
        """Return the distance to the teacher, (N, K), and the number of valid frames.

        The distance is 0 at frames that are not compared.
        """
        log_probs, x, lens = match_frames(
            log_probs, lens, batch, self.config.teacher, delay
        )
        per_frame = DISTANCES[self.config.distance](log_probs, *unpack_topk(x))
        mask = make_pad_mask(lens, x.size(1))
        return per_frame.masked_fill(mask, 0.0), int(lens.sum())
