"""Term ``inter_ctc``: CTC heads on intermediate stacks, a teacher behind every one.

    sum_i a_i * ( L_ctc(p_i, y) + lambda * sum_t d(p_teacher[t], p_i[t]) )

over heads i on stacks of the encoder, and the model's own CTC head where ``final`` is
set; a_i is 1 for the final head and 1 over their number for the others.  The heads on
stacks belong to training alone.
Source: Inter-KD, 2022, arXiv:2211.15075 (the teacher's softmax into every head, squared
distance, lambda 0.25; how the heads are summed is ours).  Without a teacher it is
intermediate CTC, Lee and Watanabe, 2021, arXiv:2102.03216.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import torch
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
    TermOutput,
    check_kind,
    delayed,
    has_targets,
    skipped_texts,
)
from icefall_kd.distill.transducer import ctc_rows, ctc_sum
from icefall_kd.transducer.model import get_stack_dims
from icefall_kd.zipformer.cpu.blocks import LogSoftmax


@dataclass(frozen=True)
class InterCtcConfig:
    """Options of the ``inter_ctc`` term.

    Attributes:
      weight: of the term in the loss.
      stacks: of the encoder that get a head, counted from 0; negative from the end.
      final: whether the model's own CTC head is one of the heads.
      teacher: Shar field of kind ``ctc``; None trains the heads without a teacher.
      kd_weight: lambda, of the distance to the teacher.
      distance: "l2" of probabilities, or "kl".
      delay: frames of 40 ms that the student may lag behind the teacher in batches
        with chunks; with full context there is none.
    """

    weight: float = 1.0
    stacks: tuple[int, ...] = ()
    final: bool = True
    teacher: Optional[str] = None
    kd_weight: float = 0.25
    distance: str = "l2"
    delay: int = 0


class InterCtcTerm:
    """See the module's docstring."""

    name = "inter_ctc"
    options = InterCtcConfig
    needs_text = True
    frame_targets = True  # unless there is no teacher
    trains = ("ctc_output",)  # unless the final head is none of the term's

    def __init__(self, config: InterCtcConfig) -> None:
        """Check the options.

        Raises:
          ValueError: if there is no head, or an option is out of range.
        """
        if not config.stacks and not config.final:
            raise ValueError("terms.inter_ctc has no head: give stacks, or final: true")
        if config.distance not in DISTANCES:
            raise ValueError(
                f"terms.inter_ctc.distance is '{config.distance}'; known are "
                f"{sorted(DISTANCES)}"
            )
        if config.delay < 0 or config.kd_weight < 0:
            raise ValueError(
                "terms.inter_ctc: delay and kd_weight must not be negative"
            )
        self.config = config
        self.needs_stacks = bool(config.stacks)
        self.fields = (config.teacher,) if config.teacher else ()
        self.frame_targets = bool(config.teacher)
        self.trains = self.trains_with(vars(config))
        if config.teacher:
            first = "final" if config.final else f"stack{config.stacks[0]}"
            self.taught = f"{first}_kd"

    @classmethod
    def trains_with(cls, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what the term trains with these options, as a run has saved them."""
        return cls.trains if options.get("final", True) else ()

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> Optional[nn.Module]:
        """Return a CTC head for each of the stacks.

        Raises:
          ValueError: if the encoder has no such stack, or the field is of another kind.
        """
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
        """Sum the losses of all heads; utterances without text have the teacher's."""
        used = ctc_rows(batch["tokens"], student.lens)
        rows = used.nonzero().flatten()
        lens = student.lens
        total = student.encoder_out.new_zeros((), dtype=torch.float32)
        frames, extras = int(lens.sum()), {}
        suspects: set[int] = set()
        heads = self._heads(student)
        taught = bool(self.config.teacher and self.config.kd_weight) and has_targets(
            batch["fields"][self.config.teacher]
        )
        if taught:
            target_lens = batch["fields"][self.config.teacher]["lens"].to(lens.device)
            left = (lens - student.lag(self.config.delay)).clamp(min=0)
            used = used | ((target_lens > 0) & (left > 0))
        for name, (scale, log_probs) in heads.items():
            if len(rows):
                losses = ctc_sum(log_probs[rows], lens[rows], batch["tokens"], rows)
                total = total + scale * losses.sum()
                bad = ~torch.isfinite(losses.detach())
                suspects.update(rows[bad].tolist())
                count = int(lens[rows].sum())
                extras[f"{name}_ctc"] = (losses.detach().sum(), count)
            if taught:
                delay = student.lag(self.config.delay)
                value, count = self._distance(log_probs, lens, batch, delay)
                total = total + scale * self.config.kd_weight * value
                extras[f"{name}_kd"] = (value.detach(), count)
        skipped = skipped_texts(batch["tokens"], ~used)
        return TermOutput(total, frames, extras, tuple(sorted(suspects)), skipped)

    def _heads(self, student: StudentOutput) -> dict[str, tuple[float, Tensor]]:
        """Return name -> (a_i, log-probabilities (N, T, V)) of each head."""
        found: dict[str, tuple[float, Tensor]] = {}
        if self.config.final:
            found["final"] = (1.0, student.model.ctc_output(student.encoder_out))
        for stack in self.config.stacks:
            x = average_frame_pairs(student.stacks[stack])[
                :, : student.encoder_out.size(1)
            ]
            log_probs = student.heads[self.name][str(stack)](x)
            found[f"stack{stack}"] = (1.0 / len(self.config.stacks), log_probs)
        return found

    def _distance(
        self, log_probs: Tensor, lens: Tensor, batch: Batch, delay: int
    ) -> tuple[Tensor, int]:
        """Return the summed distance to the teacher and the frames compared."""
        target = batch["fields"][self.config.teacher]
        log_probs, x, lens = delayed(log_probs, lens, target, delay)
        per_frame = DISTANCES[self.config.distance](log_probs, *unpack_topk(x))
        mask = make_pad_mask(lens, x.size(1))
        return per_frame.masked_fill(mask, 0.0).sum(), int(lens.sum())
