"""The student with its heads and terms: one forward pass to one loss."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from icefall_kd.core.frames import Batch
from icefall_kd.distill.term import StudentOutput, Term, TermOutput
from icefall_kd.training.config import TrainConfig
from icefall_kd.transducer.model import AsrModel

ENCODER = ("encoder_embed", "encoder")


class DistilledStudent(nn.Module):
    """A student, what its terms train beside it, and the weighted sum of the terms.

    A module of its own, so that DistributedDataParallel sees all that is trained
    in one forward pass.
    """

    def __init__(
        self,
        model: AsrModel,
        terms: Sequence[tuple[float, Term]],
        heads: nn.ModuleDict,
    ) -> None:
        """Freeze the parts of ``model`` that no term trains."""
        super().__init__()
        self.model = model
        self.heads = heads
        self.terms = list(terms)
        trained = set(ENCODER)
        trained.update(part for _, term in terms for part in term.trains)
        for name, part in model.named_children():
            part.requires_grad_(name in trained)

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the name and value of every parameter that is trained."""
        return ((n, p) for n, p in self.named_parameters() if p.requires_grad)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of front end and encoder."""
        return [p for part in ENCODER for p in getattr(self.model, part).parameters()]

    def parameters_behind_encoder(self) -> list[nn.Parameter]:
        """Return what is trained besides front end and encoder."""
        encoder = {id(p) for p in self.encoder_parameters()}
        return [p for _, p in self.trainable() if id(p) not in encoder]

    def forward(
        self, batch: Batch, step: int, frozen: bool = False
    ) -> tuple[Tensor, int, dict[str, TermOutput]]:
        """Encode a batch and add up the terms.

        All terms are divided by the batch's number of student frames, so that
        their weights keep their meaning when the size of a batch changes.

        Args:
          batch: see ``icefall_kd.dataset.loader``; on the model's device.
          step: updates made so far.
          frozen: leave front end and encoder without gradients.
        Returns:
          (loss, scalar with gradient; student frames; output of each term, detached).
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            student = self.encode(batch)
        return self.loss(student, batch, step, frozen)

    def loss(
        self, student: StudentOutput, batch: Batch, step: int, frozen: bool = False
    ) -> tuple[Tensor, int, dict[str, TermOutput]]:
        """Add up the terms; arguments and result as of :meth:`forward`.

        Args:
          student: of :meth:`encode`.
        """
        encoder_out, frames = student.encoder_out, int(student.lens.sum())
        # Zero, but it ties the loss to what is trained where no term found a target,
        # so that all processes of a distributed run take part in the backward pass.
        loss = encoder_out.float().sum() * 0.0
        if frozen:
            loss = loss + sum(0.0 * p.sum() for p in self.parameters_behind_encoder())
        outputs = {}
        for weight, term in self.terms:
            output = term(student, batch, step)
            loss = loss + weight * output.sum / max(1, frames)
            outputs[term.name] = detached(output)
        return loss, frames, outputs

    def encode(self, batch: Batch) -> StudentOutput:
        """Return the encoder's output, with its stacks' where a term needs them."""
        inputs = self.model.inputs(batch)
        stacks: Sequence[Tensor] = ()
        if any(term.needs_stacks for _, term in self.terms):
            encoder_out, lens, stacks = self.model.forward_stacks(*inputs)
        else:
            encoder_out, lens = self.model.forward_encoder(*inputs)
        chunk_size, _ = self.model.encoder.last_chunk
        return StudentOutput(
            encoder_out, lens, self.model, self.heads, chunk_size, tuple(stacks)
        )


def detached(output: TermOutput) -> TermOutput:
    """Return a term's output without its graph, fit for logging."""
    return TermOutput(
        output.sum.detach(),
        output.count,
        output.extras,
        output.suspects,
        output.skipped,
    )


def build_heads(
    terms: Sequence[tuple[float, Term]],
    model_config: Any,
    field_infos: Mapping[str, Any],
    seed: int,
) -> nn.ModuleDict:
    """Return the heads of all terms; their weights depend on ``seed`` alone.

    The global random state is left as it was, so that a run with heads starts
    from the same student, and sees the same dropout, as one without.
    """
    heads = nn.ModuleDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _, term in terms:
            head = term.build_heads(model_config, field_infos)
            if head is not None:
                heads[term.name] = head
    return heads


def parameter_groups(
    student: DistilledStudent, config: TrainConfig
) -> list[dict[str, Any]]:
    """Return the optimiser's groups: two where the encoder alone was trained before."""
    if config.init_encoder is None:
        return [{"params": [p for _, p in student.trainable()]}]
    lr = config.optim.base_lr * config.optim.encoder_lr_scale
    return [
        {"params": student.parameters_behind_encoder()},
        {"params": student.encoder_parameters(), "lr": lr},
    ]
