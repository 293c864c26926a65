"""Term ``hidden``: regression of a teacher's layers by the stacks of the encoder.

    sum_i a_i * sum_k v_k * loss_k(W_i h_i, (e_i - mean_i) / std_i),  sum_i a_i = 1

h_i is the output of the student's stack i at 50 Hz.  e_i is the field of a teacher's
layer that ``stacks`` assigns to it, at the stack's frame times.  a_i are the normalised
weights of the stacks.  The term needs no transcripts.

Source: DistillW2V2, 2023, arXiv:2303.09278 (squared error of hidden layers, linear map
W_i to the teacher's dimension).  Three choices are ours:

- Stacks are averaged, not summed.
- Targets are normalised; otherwise the layer of the largest scale would dominate.
- Stacks of the teacher's dimension have no W_i.  They are normalised like the teacher,
  so a copy of the teacher has no loss.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from icefall_kd.core.config import ModelConfig
from icefall_kd.core.frames import Batch, align_to_stack, make_pad_mask
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
    check_kind,
    check_not_negative,
    find_targets,
)
from icefall_kd.transducer.model import get_stack_dims
from icefall_kd.zipformer.subsampling import conv2d_subsampling_lens

_STACK_FRAMES = 2  # frames of a stack in a frame of the encoder's output
# Minimum std of a dimension, relative to the mean std.  Without projection, dimensions
# that are almost constant in the teacher would dominate the loss.
_MIN_STD_SHARE = 0.01


@dataclass(frozen=True)
class HiddenConfig:
    """Options of the ``hidden`` term.

    Attributes:
      weight: weight of the term in the loss; 0 turns it off.
      stacks: stack of the student's encoder -> Shar field of kind ``embedding``.
        Stacks are counted from 0, or negative from the end.
      stack_weights: stack -> weight, default 1; 0 turns the stack off.  Weights are
        normalised to a sum of 1.
      losses: weight of each frame loss: l1, l2, cosine.
      project: "auto" projects stacks whose dimension is not the teacher's, "always"
        projects all stacks.
      delay: frames of 40 ms by which the student lags behind the teacher in batches
        with chunks.
    """

    weight: float = 1.0
    stacks: dict[int, str] = field(default_factory=dict)
    stack_weights: dict[int, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=lambda: {"l2": 1.0})
    project: Literal["auto", "always"] = "auto"
    delay: int = 0


class HiddenTerm(Term):
    """Regression of a teacher's layers; see the module's docstring."""

    name = "hidden"
    options = HiddenConfig
    frame_targets = True
    trains = ()
    needs_stacks = True

    def __init__(self, config: HiddenConfig) -> None:
        """Check the options."""
        self.losses = select_losses("terms.hidden.losses", config.losses)
        unknown = sorted(set(config.stack_weights) - set(config.stacks))
        if unknown or any(w < 0 for w in config.stack_weights.values()):
            raise ValueError(
                f"terms.hidden.stack_weights: {config.stack_weights} is invalid. Give "
                f"weights that are not negative to stacks of {sorted(config.stacks)}"
            )
        weights = {i: config.stack_weights.get(i, 1.0) for i in config.stacks}
        total = sum(weights.values())
        if total == 0 or not self.losses:
            raise ValueError(
                "terms.hidden needs at least one stack and one loss with a weight "
                f"other than 0, got stacks {config.stacks} and losses {config.losses}. "
                "Remove the term to train without it"
            )
        check_not_negative(config, "terms.hidden", "delay")
        self.shares = {i: w / total for i, w in weights.items() if w != 0}
        super().__init__(config)
        self.delay = config.delay
        self.fields = tuple(dict.fromkeys(config.stacks[i] for i in self.shares))

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> nn.Module:
        """Return a :class:`RegressionHead` for each stack."""
        for name in self.fields:
            check_kind("terms.hidden.stacks", field_infos[name], "embedding")
        dims = get_stack_dims(model_config, tuple(self.shares), "terms.hidden.stacks")
        heads = {}
        for stack, dim in zip(self.shares, dims):
            info = field_infos[self.config.stacks[stack]]
            project = self.config.project == "always" or dim != len(info.mean)
            min_share = 0.0 if project else _MIN_STD_SHARE
            heads[str(stack)] = RegressionHead(
                dim, info.mean, info.std, project, min_share
            )
        return nn.ModuleDict(heads)

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Sum the losses over valid student frames of utterances with a target."""
        has_target = torch.zeros_like(student.lens, dtype=torch.bool)
        for name in self.fields:
            has_target |= find_targets(batch["fields"][name], has_target.device)
        lens = (student.lens - student.lag(self.delay)).clamp(min=0)
        pairs = self._make_pairs(student, batch)
        # Scale the sum over frames of 20 ms to frames of 40 ms, as in all other terms.
        return regress(pairs, self.losses, lens, has_target, scale=1 / _STACK_FRAMES)

    def _make_pairs(self, student: StudentOutput, batch: Batch) -> Iterator[TargetPair]:
        """Yield the pair of each stack."""
        device = student.lens.device
        lens = conv2d_subsampling_lens(batch["feature_lens"]).to(device)  # of a stack
        # Student frame i + delay is compared with target frame i.
        delay = _STACK_FRAMES * student.lag(self.delay)
        compared_lens = (lens - delay).clamp(min=0)
        if compared_lens.max() == 0:
            return
        for stack, share in self.shares.items():
            target = batch["fields"][self.config.stacks[stack]]
            has_target = find_targets(target, device)
            if not has_target.any():
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
                prediction=head(h),
                target=head.normalise(aligned),
                mask=make_pad_mask(compared_lens * has_target, h.size(1)),
            )
