"""Term ``embedding``: regress the teachers' embeddings.

    sum_m w_m * sum_k v_k * loss_k(P_m h, (e_m - mean_m) / std_m)

with h the encoder's output, e_m what teacher m said, brought to the student's frame
times, P_m a linear head of its own, and mean and std over the training set, which
make teachers of different scale comparable.  It needs no text.
Source: Yang et al., Knowledge distillation from multiple foundation models for
end-to-end speech recognition, 2023, arXiv:2303.10917 (pre-training by regression;
separate heads and normalised targets are ours).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from icefall_kd.config import ModelConfig
from icefall_kd.distill.align import align_frames
from icefall_kd.distill.regression import (
    Lesson,
    TeacherHead,
    chosen_losses,
    regress,
    taught_by,
)
from icefall_kd.distill.term import Batch, StudentOutput, TermOutput
from icefall_kd.masks import make_pad_mask
from icefall_kd.transducer.build import encoder_dim


@dataclass(frozen=True)
class EmbeddingConfig:
    """Options of the ``embedding`` term.

    Attributes:
      weight: of the term in the loss.
      teachers: weight of each teacher by Shar field; 0 leaves it out.
      losses: weight of each frame loss: l1, l2, cosine.
      delay: frames of 40 ms that the student may lag behind the teacher; for
        streaming students.
    """

    weight: float = 1.0
    teachers: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=lambda: {"l1": 1.0})
    delay: int = 0


class EmbeddingTerm:
    """See the module's docstring."""

    name = "embedding"
    options = EmbeddingConfig
    needs_stacks = False
    needs_text = False
    trains = ()

    def __init__(self, config: EmbeddingConfig) -> None:
        """Check the options.

        Raises:
          ValueError: if no teacher or no loss has a weight, or a loss is unknown.
        """
        self.losses = chosen_losses("terms.embedding.losses", config.losses)
        self.teachers = {k: w for k, w in config.teachers.items() if w != 0}
        if not self.teachers or not self.losses:
            raise ValueError(
                "terms.embedding needs at least one teacher and one loss with a "
                f"weight, got teachers {config.teachers}, losses {config.losses}; "
                "leave the term out to train without it"
            )
        if config.delay < 0:
            raise ValueError(f"terms.embedding.delay is {config.delay}, must be >= 0")
        self.delay = config.delay
        self.fields = tuple(self.teachers)

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> nn.Module:
        """Return a :class:`TeacherHead` for each teacher.

        Args:
          field_infos: ``FieldInfo`` of each field in :attr:`fields`; its mean and
            std, D numbers each, normalise the targets.
        """
        dim = encoder_dim(model_config)
        infos = {name: field_infos[name] for name in self.teachers}
        return nn.ModuleDict(
            {
                name: TeacherHead(dim, info.mean, info.std, project=True)
                for name, info in infos.items()
            }
        )

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Sum the losses over valid student frames of utterances with a target."""
        lens = (student.lens - self.delay).clamp(min=0)
        taught = torch.zeros_like(lens, dtype=torch.bool)  # by any teacher
        for name in self.teachers:
            taught |= taught_by(batch["fields"][name], lens)
        lessons = self._lessons(student, batch, lens) if lens.max() > 0 else ()
        result = regress(lessons, self.losses, student.encoder_out)
        return TermOutput(
            result.sum,
            int((lens * taught).sum()),
            result.extras,
            result.suspects,
            skipped=int((~taught).sum()),
        )

    def _lessons(
        self, student: StudentOutput, batch: Batch, lens: Tensor
    ) -> Iterator[Lesson]:
        """Yield one lesson a teacher; ``lens`` (N,) are the frames that it fills."""
        # Student frame i + delay answers for target frame i.
        encoder_out = student.encoder_out[:, self.delay :]
        for name, weight in self.teachers.items():
            target = batch["fields"][name]
            has_target = taught_by(target, lens)
            if not has_target.any():
                continue
            head = student.heads[self.name][name]
            aligned = align_frames(
                target["x"].to(encoder_out.device),
                target["lens"].to(encoder_out.device).clamp(min=1),
                target["frame_shift"],
                student.lens,
            )[:, : encoder_out.size(1)]
            yield Lesson(
                name,
                weight,
                guess=head(encoder_out),
                goal=head.normalise(aligned),
                mask=make_pad_mask(lens * has_target, encoder_out.size(1)),
            )
