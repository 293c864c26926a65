"""Term ``embedding``: regress the teachers' embeddings.

    sum_m w_m * sum_k v_k * loss_k(P_m h, (e_m - mean_m) / std_m)

with h the encoder's output, e_m what teacher m said, brought to the student's frame
times, P_m a linear head of its own, and mean and std over the training set, which
make teachers of different scale comparable.  It needs no text.

With ``choose: random`` an utterance is taught by one of its teachers at a time, drawn
with probabilities w_m, and by all of them in evaluation; with ``choose: average`` by
the mean of their normalised embeddings, through one head.  Both count as much as all
teachers do together, the sum of w_m.
Source: Yang et al., Knowledge distillation from multiple foundation models for
end-to-end speech recognition, 2023, arXiv:2303.10917 (pre-training by regression;
separate heads and normalised targets are ours, the other choices its ablations).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from icefall_kd.core.config import ModelConfig
from icefall_kd.core.frames import Batch, align_frames, make_pad_mask
from icefall_kd.distill.regression import (
    TargetPair,
    TeacherHead,
    chosen_losses,
    has_target,
    regress,
)
from icefall_kd.distill.term import StudentOutput, TermOutput, skipped_targets
from icefall_kd.transducer.model import get_encoder_dim

CHOICES = ("all", "random", "average")


@dataclass(frozen=True)
class EmbeddingConfig:
    """Options of the ``embedding`` term.

    Attributes:
      weight: of the term in the loss.
      teachers: weight of each teacher by Shar field; 0 leaves it out.
      losses: weight of each frame loss: l1, l2, cosine.
      delay: frames of 40 ms that the student may lag behind the teacher in batches
        with chunks; with full context there is none.
      choose: "all" teachers at once, one drawn at "random" for each utterance, or
        their "average", where they are of one size.
    """

    weight: float = 1.0
    teachers: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=lambda: {"l1": 1.0})
    delay: int = 0
    choose: str = "all"


class EmbeddingTerm:
    """See the module's docstring."""

    name = "embedding"
    options = EmbeddingConfig
    needs_stacks = False
    needs_text = False
    frame_targets = True
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
        if config.choose not in CHOICES:
            raise ValueError(
                f"terms.embedding.choose is '{config.choose}'; it can be one of "
                f"{CHOICES}"
            )
        if config.choose != "all" and min(self.teachers.values()) < 0:
            raise ValueError(
                f"terms.embedding.choose is '{config.choose}', and a weight of "
                f"teachers is negative: {config.teachers}"
            )
        self.delay, self.choose = config.delay, config.choose
        self.fields = tuple(self.teachers)

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> nn.Module:
        """Return a :class:`TeacherHead` for each teacher.

        Of an average only the first has a map of the student: it serves the mean.

        Args:
          field_infos: ``FieldInfo`` of each field in :attr:`fields`; its mean and
            std, D numbers each, normalise the targets.
        Raises:
          ValueError: if teachers of several sizes are to be averaged.
        """
        dim = get_encoder_dim(model_config)
        infos = {name: field_infos[name] for name in self.teachers}
        sizes = {name: len(info.mean) for name, info in infos.items()}
        if self.choose == "average" and len(set(sizes.values())) > 1:
            raise ValueError(
                f"terms.embedding.choose is 'average', but the teachers' embeddings "
                f"have different sizes: {sizes}; choose all or random"
            )
        return nn.ModuleDict(
            {
                name: TeacherHead(
                    dim,
                    info.mean,
                    info.std,
                    project=self.choose != "average" or name == self.fields[0],
                )
                for name, info in infos.items()
            }
        )

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Sum the losses over valid student frames of utterances with a target."""
        lens = (student.lens - student.lag(self.delay)).clamp(min=0)
        told = {n: has_target(batch["fields"][n], lens) for n in self.teachers}
        taught = torch.stack(list(told.values())).any(dim=0)
        lessons: Iterable[TargetPair] = ()
        if lens.max() > 0 and taught.any():
            if self.choose == "average":
                lessons = [self._average(student, batch, lens, told)]
            else:
                lessons = self._separate(student, batch, lens, told, step)
        result = regress(lessons, self.losses, student.encoder_out)
        return TermOutput(
            result.sum,
            int((lens * taught).sum()),
            result.extras,
            result.suspects,
            skipped=skipped_targets(taught, lens),
        )

    def _separate(
        self,
        student: StudentOutput,
        batch: Batch,
        lens: Tensor,
        told: Mapping[str, Tensor],
        step: int,
    ) -> Iterator[TargetPair]:
        """Yield one lesson a teacher.

        Args:
          lens: (N,) int64, frames of the student that have a target.
          told: teacher -> (N,) bool, whether it has a target.
        """
        # Student frame i + delay answers for target frame i.
        encoder_out = student.encoder_out[:, student.lag(self.delay) :]
        weights = self.teachers
        if self.choose == "random" and student.model.training:
            ids = [cut.id for cut in batch["cuts"]]
            told = draw_teachers(told, self.teachers, ids, step)
            weights = dict.fromkeys(told, sum(self.teachers.values()))
        for name, chosen in told.items():
            if not chosen.any():
                continue
            yield TargetPair(
                name,
                weights[name],
                guess=student.heads[self.name][name](encoder_out),
                goal=self._goal(name, student, batch),
                mask=make_pad_mask(lens * chosen, encoder_out.size(1)),
            )

    def _average(
        self,
        student: StudentOutput,
        batch: Batch,
        lens: Tensor,
        told: Mapping[str, Tensor],
    ) -> TargetPair:
        """Return the lesson of the mean of the teachers that have a target."""
        encoder_out = student.encoder_out[:, student.lag(self.delay) :]
        total, share = torch.zeros(()), torch.zeros(())
        for name, weight in self.teachers.items():
            if told[name].any():
                weighted = (weight * told[name]).view(-1, 1, 1)
                total = total + weighted * self._goal(name, student, batch)
                share = share + weighted
        taught = share.flatten() > 0
        return TargetPair(
            "average",
            sum(self.teachers.values()),
            guess=student.heads[self.name][self.fields[0]](encoder_out),
            goal=total / share.masked_fill(share == 0, 1.0),
            mask=make_pad_mask(lens * taught, encoder_out.size(1)),
        )

    def _goal(self, name: str, student: StudentOutput, batch: Batch) -> Tensor:
        """Return a teacher's normalised frames at the student's times, (N, T, D)."""
        target, device = batch["fields"][name], student.encoder_out.device
        aligned = align_frames(
            target["x"].to(device),
            target["lens"].to(device).clamp(min=1),
            target["frame_shift"],
            student.lens,
        )
        num_frames = student.encoder_out.size(1) - student.lag(self.delay)
        return student.heads[self.name][name].normalise(aligned[:, :num_frames])


def draw_teachers(
    told: Mapping[str, Tensor],
    weights: Mapping[str, float],
    ids: Sequence[str],
    step: int,
) -> dict[str, Tensor]:
    """Return teacher -> (N,) bool, with one of its teachers for each utterance.

    The choice depends on the step and the utterance alone: not on the rest of the
    batch, the process, or whether the run was stopped before.

    Args:
      told: teacher -> (N,) bool, whether it has a target.
      weights: of the teachers, in proportion to their probabilities.
      ids: of the utterances.
    """
    names = list(told)
    has = torch.stack([told[name] for name in names], dim=1).cpu()  # (N, teachers)
    shares = has * torch.tensor([weights[name] for name in names], dtype=torch.float64)
    draws = torch.tensor([[_uniform(f"{step} {i}")] for i in ids], dtype=torch.float64)
    ends = shares.cumsum(dim=1)
    # The first whose share ends behind the draw; of no teacher the share is 0.
    chosen = (draws * ends[:, -1:] < ends).cumsum(dim=1) == 1
    return {name: chosen[:, k].to(told[name].device) for k, name in enumerate(names)}


def _uniform(key: str) -> float:
    """Return a number in [0, 1) that only this key has."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
