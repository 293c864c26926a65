"""Term ``embedding``: regress the teachers' embeddings.

    sum_m w_m * sum_k v_k * loss_k(P_m h, (e_m - mean_m) / std_m)

with h the encoder's output, e_m what teacher m said, brought to the student's frame
times, P_m a linear head of its own, and mean and std over the training set, which
make teachers of different scale comparable.  It needs no text.
Source: Yang et al., Knowledge distillation from multiple foundation models for
end-to-end speech recognition, 2023, arXiv:2303.10917 (pre-training by regression;
separate heads and normalised targets are ours).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from icefall_kd.config import ModelConfig
from icefall_kd.distill.align import align_frames
from icefall_kd.distill.losses import FRAME_LOSSES
from icefall_kd.distill.term import Batch, StudentOutput, TermOutput
from icefall_kd.masks import make_pad_mask
from icefall_kd.transducer.build import encoder_dim
from icefall_kd.transducer.joiner import small_linear


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


class TeacherHead(nn.Module):
    """Linear map from the student to one teacher's normalised embedding."""

    def __init__(self, encoder_dim: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        # Small, so that it starts near the targets' mean, which is zero.
        self.proj = small_linear(encoder_dim, mean.numel())
        self.register_buffer("mean", mean.float())
        # A dimension that never moves must not become a division by zero.
        self.register_buffer("std", std.float().clamp(min=1e-5))

    def forward(self, encoder_out: Tensor) -> Tensor:
        """Map (N, T, C) to (N, T, D) in the normalised space."""
        return self.proj(encoder_out)

    def normalise(self, target: Tensor) -> Tensor:
        """Map a teacher's (N, T, D) into the normalised space."""
        return (target - self.mean) / self.std


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
        unknown = sorted(set(config.losses) - set(FRAME_LOSSES))
        if unknown:
            raise ValueError(
                f"terms.embedding.losses: unknown {unknown}; known are "
                f"{sorted(FRAME_LOSSES)}"
            )
        self.teachers = {k: w for k, w in config.teachers.items() if w != 0}
        self.losses = {k: w for k, w in config.losses.items() if w != 0}
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
        return nn.ModuleDict(
            {
                name: TeacherHead(
                    dim,
                    torch.tensor(field_infos[name].mean),
                    torch.tensor(field_infos[name].std),
                )
                for name in self.teachers
            }
        )

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Sum the losses over valid student frames of utterances with a target."""
        total = student.encoder_out.new_zeros((), dtype=torch.float32)
        extras, suspects = {}, set()
        lens = (student.lens - self.delay).clamp(min=0)
        if lens.max() == 0:
            return TermOutput(total, 0)
        # Student frame i + delay answers for target frame i.
        encoder_out = student.encoder_out[:, self.delay :]
        taught = torch.zeros_like(lens, dtype=torch.bool)  # by any teacher
        for name, weight in self.teachers.items():
            target = batch["fields"][name]
            target_lens = target["lens"].to(encoder_out.device)
            has_target = target_lens > 0
            if not has_target.any():
                continue
            taught |= has_target
            head = student.heads[self.name][name]
            mask = make_pad_mask(lens * has_target, encoder_out.size(1))
            aligned = align_frames(
                target["x"].to(encoder_out.device),
                target_lens.clamp(min=1),
                target["frame_shift"],
                student.lens,
            )[:, : encoder_out.size(1)]
            goal, guess = head.normalise(aligned), head(encoder_out)
            for kind, scale in self.losses.items():
                value, frames = FRAME_LOSSES[kind](guess, goal, mask)
                total = total + weight * scale * value
                extras[f"{name}_{kind}"] = (value.detach(), frames)
            if not torch.isfinite(total.detach()):
                suspects.update(not_finite(guess.detach(), goal, mask))
        return TermOutput(
            total,
            int((lens * taught).sum()),
            extras,
            tuple(sorted(suspects)),
            skipped=int((~taught).sum()),
        )


def not_finite(guess: Tensor, goal: Tensor, mask: Tensor) -> list[int]:
    """Return the utterances with a valid frame that is not finite on either side.

    Args:
      guess, goal: (N, T, D) float.
      mask: (N, T) bool, True is padding.
    """
    bad = ~(torch.isfinite(guess) & torch.isfinite(goal)).all(dim=2) & ~mask
    return bad.any(dim=1).nonzero().flatten().tolist()
