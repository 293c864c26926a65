"""Term ``embedding``: regression of teachers' embeddings.

    sum_m w_m * sum_k v_k * loss_k(P_m h, (e_m - mean_m) / std_m)

h is the encoder's output, e_m are the embeddings of teacher m at the student's frame
times, and P_m is a linear projection.  mean_m and std_m over the field's set make
teachers of different scale comparable.  The term needs no transcripts.

``choose: random`` draws one teacher for each utterance with probability proportional to
w_m; evaluation uses all teachers.  ``choose: average`` has one projection, which
predicts the weighted mean of the normalised embeddings.  The losses of both are
multiplied by the sum of all w_m, so all three choices have the same scale.

Source: Yang et al., Knowledge distillation from multiple foundation models for
end-to-end speech recognition, 2023, arXiv:2303.10917 (pre-training by regression, and
the choices as ablations; separate projections and normalised targets are ours).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from icefall_kd.core.config import ModelConfig
from icefall_kd.core.frames import Batch, align_frames, make_pad_mask
from icefall_kd.distill.regression import (
    RegressionHead,
    TargetPair,
    regress,
    select_losses,
)
from icefall_kd.distill.term import (
    StudentOutput,
    Term,
    TermOutput,
    check_not_negative,
    find_targets,
)
from icefall_kd.transducer.model import get_encoder_dim


@dataclass(frozen=True)
class EmbeddingConfig:
    """Options of the ``embedding`` term.

    Attributes:
      weight: weight of the term in the loss; 0 turns it off.
      teachers: Shar field -> weight of this teacher; 0 turns it off.
      losses: weight of each frame loss: l1, l2, cosine.
      delay: frames of 40 ms by which the student lags behind the teachers in batches
        with chunks.
      choose: "all" predicts every teacher, "random" one drawn for each utterance,
        "average" the mean of teachers of equal dimension.
    """

    weight: float = 1.0
    teachers: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=lambda: {"l1": 1.0})
    delay: int = 0
    choose: Literal["all", "random", "average"] = "all"


class EmbeddingTerm(Term):
    """Regression of teachers' embeddings; see the module's docstring."""

    name = "embedding"
    options = EmbeddingConfig
    frame_targets = True
    trains = ()

    def __init__(self, config: EmbeddingConfig) -> None:
        """Check the options."""
        self.losses = select_losses("terms.embedding.losses", config.losses)
        self.teachers = {k: w for k, w in config.teachers.items() if w != 0}
        if not self.teachers or not self.losses:
            raise ValueError(
                "terms.embedding needs at least one teacher and one loss with a weight "
                f"other than 0, got teachers {config.teachers} and losses "
                f"{config.losses}. Remove the term to train without it"
            )
        check_not_negative(config, "terms.embedding", "delay")
        if config.choose != "all" and min(self.teachers.values()) < 0:
            raise ValueError(
                f"terms.embedding.teachers: {config.teachers} has a negative weight, "
                f"which terms.embedding.choose: {config.choose} does not allow. Use "
                "weights above 0"
            )
        super().__init__(config)
        self.delay, self.choose = config.delay, config.choose
        self.fields = tuple(self.teachers)

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> nn.Module:
        """Return a :class:`RegressionHead` for each teacher.

        With ``choose: average`` only the head of the first teacher has a projection.
        """
        dim = get_encoder_dim(model_config)
        infos = {name: field_infos[name] for name in self.teachers}
        dims = {name: len(info.mean) for name, info in infos.items()}
        if self.choose == "average" and len(set(dims.values())) > 1:
            raise ValueError(
                f"terms.embedding.teachers: embeddings of different dimensions {dims} "
                "have no average. Set terms.embedding.choose to all or random"
            )
        return nn.ModuleDict(
            {
                name: RegressionHead(
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
        has_target = {
            name: find_targets(batch["fields"][name], lens.device)
            for name in self.teachers
        }
        has_any = torch.stack(list(has_target.values())).any(dim=0)
        pairs: Iterable[TargetPair] = ()
        if lens.max() > 0 and has_any.any():
            if self.choose == "average":
                pairs = [self._make_average_pair(student, batch, lens, has_target)]
            else:
                pairs = self._make_pairs(student, batch, lens, has_target, step)
        return regress(pairs, self.losses, lens, has_any)

    def _make_pairs(
        self,
        student: StudentOutput,
        batch: Batch,
        lens: Tensor,
        has_target: Mapping[str, Tensor],
        step: int,
    ) -> Iterator[TargetPair]:
        """Yield the pair of each teacher.

        Args:
          lens:       (N,) int64, student frames to compare.
          has_target: teacher -> (N,) bool.
        """
        # Student frame i + delay is compared with target frame i.
        encoder_out = student.encoder_out[:, student.lag(self.delay) :]
        weights, rows = self.teachers, has_target
        if self.choose == "random" and student.model.training:
            ids = [cut.id for cut in batch["cuts"]]
            rows = draw_teachers(has_target, self.teachers, ids, step)
            weights = dict.fromkeys(rows, sum(self.teachers.values()))
        for name, is_used in rows.items():
            if is_used.any():
                yield TargetPair(
                    name,
                    weights[name],
                    prediction=student.heads[self.name][name](encoder_out),
                    target=self._align_target(name, student, batch),
                    mask=make_pad_mask(lens * is_used, encoder_out.size(1)),
                )

    def _make_average_pair(
        self,
        student: StudentOutput,
        batch: Batch,
        lens: Tensor,
        has_target: Mapping[str, Tensor],
    ) -> TargetPair:
        """Return the pair of the weighted mean, over the teachers with a target.

        Args:
          as of :meth:`_make_pairs`.
        """
        encoder_out = student.encoder_out[:, student.lag(self.delay) :]
        total, norm = torch.zeros(()), torch.zeros(())
        for name, weight in self.teachers.items():
            if has_target[name].any():
                weights = (weight * has_target[name]).view(-1, 1, 1)
                total = total + weights * self._align_target(name, student, batch)
                norm = norm + weights
        return TargetPair(
            "average",
            sum(self.teachers.values()),
            prediction=student.heads[self.name][self.fields[0]](encoder_out),
            target=total / norm.masked_fill(norm == 0, 1.0),
            mask=make_pad_mask(lens * (norm.flatten() > 0), encoder_out.size(1)),
        )

    def _align_target(self, name: str, student: StudentOutput, batch: Batch) -> Tensor:
        """Return normalised embeddings at the student's frame times, (N, T, D)."""
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
    has_target: Mapping[str, Tensor],
    weights: Mapping[str, float],
    ids: Sequence[str],
    step: int,
) -> dict[str, Tensor]:
    """Draw for each utterance one of the teachers with a target.

    The draw depends only on step and utterance, not on the rest of the batch, the
    process, or an interruption of the run.

    Args:
      has_target: teacher -> (N,) bool.
      weights:    teacher -> a number proportional to its probability.
      ids:        N cut ids.
      step:       number of updates so far.
    Returns:
      teacher -> (N,) bool, True where it is drawn.
    """
    names = list(has_target)
    has = torch.stack([has_target[name] for name in names], dim=1).cpu()
    shares = has * torch.tensor([weights[name] for name in names], dtype=torch.float64)
    draws = torch.tensor(
        [[_hash_to_uniform(f"{step} {i}")] for i in ids], dtype=torch.float64
    )
    ends = shares.cumsum(dim=1)  # (N, teachers)
    # The first teacher whose interval ends after the draw.  A teacher without target
    # has an empty interval.
    drawn = (draws * ends[:, -1:] < ends).cumsum(dim=1) == 1
    return {
        name: drawn[:, k].to(has_target[name].device) for k, name in enumerate(names)
    }


def _hash_to_uniform(key: str) -> float:
    """Return a number in [0, 1) that depends only on the key."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
