"""Term ``hidden``: regress what a teacher's layers say, stack by stack.

    sum_i a_i * sum_k v_k * loss_k(W_i h_i, (e_i - mean_i) / std_i),  sum_i a_i = 1

with h_i the output of the student's stack i, 50 Hz, and e_i the teacher's layer that
it answers for, brought to the stack's frame times.  It needs no text.
Source: the hidden layers of DistillW2V2, 2023, arXiv:2303.09278 (squared error, a
linear map W_i to the teacher's size).  Ours are the mean over stacks in the place of
their sum, and the normalised targets: the squared error of raw layers goes with the
square of their scale, so that the layer of the largest would rule.  Where sizes agree
there is no W_i, and the student is normalised as its teacher: one that begins as its
teacher has no loss but that of what it cannot hear.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from icefall_kd.core.config import ModelConfig
from icefall_kd.core.frames import Batch, align_to_stack, make_pad_mask
from icefall_kd.distill.regression import (
    TargetPair,
    TeacherHead,
    chosen_losses,
    has_target,
    regress,
)
from icefall_kd.distill.term import (
    StudentOutput,
    TermOutput,
    check_kind,
    skipped_targets,
)
from icefall_kd.transducer.model import get_stack_dims
from icefall_kd.zipformer.subsampling import conv2d_subsampling_lens

PROJECT = ("auto", "always")
_PER_FRAME = 2  # frames of a stack in one of the student
# Of the teacher's mean deviation.  A student that is normalised as its teacher may
# move where that one hardly does, and what it does there must not outweigh all else.
_LEAST_SHARE = 0.01


@dataclass(frozen=True)
class HiddenConfig:
    """Options of the ``hidden`` term.

    Attributes:
      weight: of the term in the loss.
      stacks: stack of the student's encoder, counted from 0, negative from the end ->
        Shar field of kind ``embedding`` that it answers for.
      stack_weights: of stacks, 1 where absent; 0 leaves one out.  A stack counts by
        its share of their sum.
      losses: weight of each frame loss: l1, l2, cosine.
      project: "auto" maps a stack linearly where its size is not the teacher's;
        "always" maps all.
      delay: frames of 40 ms that the student may lag behind the teacher in batches
        with chunks; with full context there is none.
    """

    weight: float = 1.0
    stacks: dict[int, str] = field(default_factory=dict)
    stack_weights: dict[int, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=lambda: {"l2": 1.0})
    project: str = "auto"
    delay: int = 0


class HiddenTerm:
    """See the module's docstring."""

    name = "hidden"
    options = HiddenConfig
    needs_stacks = True
    needs_text = False
    frame_targets = True
    trains = ()

    def __init__(self, config: HiddenConfig) -> None:
        """Check the options.

        Raises:
          ValueError: if no stack or no loss has a weight, or an option is out of range.
        """
        self.losses = chosen_losses("terms.hidden.losses", config.losses)
        astray = sorted(set(config.stack_weights) - set(config.stacks))
        if astray or any(w < 0 for w in config.stack_weights.values()):
            raise ValueError(
                f"terms.hidden.stack_weights is {config.stack_weights}; weights must "
                f"not be negative, and be of the stacks {sorted(config.stacks)}"
            )
        weights = {i: config.stack_weights.get(i, 1.0) for i in config.stacks}
        total = sum(weights.values())
        if total == 0 or not self.losses:
            raise ValueError(
                "terms.hidden needs at least one stack and one loss with a weight, got "
                f"stacks {config.stacks}, losses {config.losses}; leave the term out "
                "to train without it"
            )
        if config.project not in PROJECT:
            raise ValueError(
                f"terms.hidden.project is '{config.project}'; it can be one of "
                f"{PROJECT}"
            )
        if config.delay < 0:
            raise ValueError(f"terms.hidden.delay is {config.delay}, must be >= 0")
        self.shares = {i: w / total for i, w in weights.items() if w != 0}
        self.config = config
        self.fields = tuple(dict.fromkeys(config.stacks[i] for i in self.shares))

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> nn.Module:
        """Return a :class:`TeacherHead` for each stack.

        Args:
          field_infos: ``FieldInfo`` of each field in :attr:`fields`; its mean and
            std, D numbers each, normalise the targets.
        Raises:
          ValueError: if the encoder has no such stack, or a field is of another kind.
        """
        for name in self.fields:
            check_kind("terms.hidden.stacks", field_infos[name], "embedding")
        dims = get_stack_dims(model_config, tuple(self.shares), "terms.hidden.stacks")
        heads = {}
        for stack, dim in zip(self.shares, dims):
            info = field_infos[self.config.stacks[stack]]
            project = self.config.project == "always" or dim != len(info.mean)
            least = 0.0 if project else _LEAST_SHARE
            heads[str(stack)] = TeacherHead(dim, info.mean, info.std, project, least)
        return nn.ModuleDict(heads)

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Sum the losses over valid student frames of utterances with a target."""
        delay = student.lag(self.config.delay)
        taught = torch.zeros_like(student.lens, dtype=torch.bool)  # by any layer
        for name in self.fields:
            taught |= has_target(batch["fields"][name], taught)
        lens = conv2d_subsampling_lens(batch["feature_lens"]).to(student.lens.device)
        lessons = self._lessons(student, batch, lens)
        result = regress(lessons, self.losses, student.encoder_out)
        left = (student.lens - delay).clamp(min=0)
        return TermOutput(
            # Of the student's frames, as all terms count them.
            result.sum / _PER_FRAME,
            int((left * taught).sum()),
            result.extras,
            result.suspects,
            skipped=skipped_targets(taught, left),
        )

    def _lessons(
        self, student: StudentOutput, batch: Batch, lens: Tensor
    ) -> Iterator[TargetPair]:
        """Yield one lesson a stack; ``lens`` (N,) are its valid frames."""
        # Student frame i + delay answers for target frame i.
        delay = _PER_FRAME * student.lag(self.config.delay)
        left = (lens - delay).clamp(min=0)
        if left.max() == 0:
            return
        for stack, share in self.shares.items():
            target = batch["fields"][self.config.stacks[stack]]
            compared = has_target(target, lens)
            if not compared.any():
                continue
            head = student.heads[self.name][str(stack)]
            h = student.stacks[stack][:, delay : int(lens.max())]
            aligned = align_to_stack(
                target["x"].to(h.device),
                target["lens"].to(h.device).clamp(min=1),
                target["frame_shift"],
                lens,
            )[:, : h.size(1)]
            yield TargetPair(
                f"stack{stack}",
                share,
                guess=head(h),
                goal=head.normalise(aligned),
                mask=make_pad_mask(left * compared, h.size(1)),
            )
