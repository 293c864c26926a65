"""The student with its heads and terms: from a batch to the weighted loss."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn

from icefall_kd.core.cpu import has_fast_bf16
from icefall_kd.core.frames import Batch
from icefall_kd.distill.term import StudentOutput, Term, TermOutput
from icefall_kd.training.config import TrainConfig
from icefall_kd.training.optim import Eden, ScaledAdam
from icefall_kd.transducer.model import AsrModel

ENCODER = ("encoder_embed", "encoder")  # parts of the model
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class DistilledStudent(nn.Module):
    """A student, the heads of its terms, and the weighted sum of the terms.

    It is a module so that DistributedDataParallel sees one forward pass through all
    trained parameters.
    """

    def __init__(
        self,
        model: AsrModel,
        terms: Sequence[tuple[float, Term]],
        heads: nn.ModuleDict,
    ) -> None:
        """Freeze the parts of ``model`` that no term trains.

        Args:
          terms: (weight, term) pairs.
          heads: by term name, see :func:`build_heads`.
        Raises:
          ValueError: if a term trains a part that the model does not have.
        """
        super().__init__()
        self.model = model
        self.heads = heads
        self.terms = list(terms)
        trained = set(ENCODER)
        for _, term in terms:
            for part in term.trains:
                if not hasattr(model, part):
                    raise ValueError(
                        f"terms.{term.name} trains '{part}', but the model has no such "
                        f"part. Correct trains of {type(term).__name__}"
                    )
            trained.update(term.trains)
        for name, part in model.named_children():
            part.requires_grad_(name in trained)

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the name and value of every trained parameter."""
        return ((n, p) for n, p in self.named_parameters() if p.requires_grad)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of front end and encoder."""
        return [p for part in ENCODER for p in getattr(self.model, part).parameters()]

    def other_parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters outside front end and encoder."""
        encoder = {id(p) for p in self.encoder_parameters()}
        return [p for _, p in self.trainable() if id(p) not in encoder]

    def forward(
        self, batch: Batch, step: int, frozen: bool = False
    ) -> tuple[Tensor, int, dict[str, TermOutput]]:
        """Encode a batch and compute the loss.

        Args:
          batch: see ``icefall_kd.dataset``; on the model's device.
          step: updates so far.
          frozen: True computes no gradients for front end and encoder.
        Returns:
          loss: scalar with gradient, nats per student frame.
          frames: number of student frames.
          outputs: term name -> its output, detached.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            student = self.encode(batch)
        return self.loss(student, batch, step, frozen)

    def encode(self, batch: Batch) -> StudentOutput:
        """Return the encoder output, with the stacks' outputs if a term needs them."""
        inputs = self.model.get_inputs(batch)
        stacks: Sequence[Tensor] = ()
        if any(term.needs_stacks for _, term in self.terms):
            encoder_out, lens, stacks = self.model.forward_stacks(*inputs)
        else:
            encoder_out, lens = self.model.forward_encoder(*inputs)
        chunk_size, _ = self.model.encoder.last_chunk
        return StudentOutput(
            encoder_out, lens, self.model, self.heads, chunk_size, tuple(stacks)
        )

    def loss(
        self, student: StudentOutput, batch: Batch, step: int, frozen: bool = False
    ) -> tuple[Tensor, int, dict[str, TermOutput]]:
        """Return the weighted sum of the terms over an encoded batch.

        Every term is divided by the number of student frames in the batch, so that a
        weight does not depend on the batch size.

        Args:
          student: output of :meth:`encode`.
          batch, step, frozen: see :meth:`forward`.
        Returns:
          See :meth:`forward`.
        """
        encoder_out, frames = student.encoder_out, int(student.lens_cpu.sum())
        # This zero connects the loss to all trained parameters: in a distributed run
        # every process needs a backward pass, also if no term has a target.
        loss = encoder_out.float().sum() * 0.0
        if frozen:
            loss = loss + sum(0.0 * p.sum() for p in self.other_parameters())
        else:
            loss = loss + _Reach.apply(*(p for _, p in self.trainable()))
        outputs = {}
        for weight, term in self.terms:
            output = term(student, batch, step)
            loss = loss + weight * output.sum / max(1, frames)
            outputs[term.name] = dataclasses.replace(output, sum=output.sum.detach())
        return loss, frames, outputs


class _Reach(torch.autograd.Function):
    """Zero whose backward pass reaches parameters and adds nothing to their gradients.

    DistributedDataParallel then need not search each batch for parameters that a
    skipped layer, or a term without a target, leaves unused.
    """

    @staticmethod
    def forward(ctx: Any, *params: Tensor) -> Tensor:
        ctx.num_params = len(params)
        return params[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        return (None,) * ctx.num_params


def build_heads(
    terms: Sequence[tuple[float, Term]],
    model_config: Any,
    field_infos: Mapping[str, Any],
    seed: int,
) -> nn.ModuleDict:
    """Return the heads of all terms, initialised from ``seed``.

    The global random state does not change, so a run with heads starts from the same
    student and draws the same dropout masks as a run without heads.
    """
    heads = nn.ModuleDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _, term in terms:
            head = term.build_heads(model_config, field_infos)
            if head is not None:
                heads[term.name] = head
    return heads


def build_optimizer(
    student: DistilledStudent, config: TrainConfig
) -> tuple[ScaledAdam, Eden]:
    """Return the optimiser and its schedule.

    With ``init_encoder`` the encoder is a group with its own learning rate.
    """
    optim = config.optim
    groups: list[dict[str, Any]] = [{"params": [p for _, p in student.trainable()]}]
    if config.init_encoder is not None:
        lr = optim.base_lr * optim.encoder_lr_scale
        groups = [
            {"params": student.other_parameters()},
            {"params": student.encoder_parameters(), "lr": lr},
        ]
    optimizer = ScaledAdam(groups, optim.base_lr, optim.clipping_scale)
    scheduler = Eden(optimizer, optim.lr_batches, optim.lr_epochs, optim.warmup_batches)
    return optimizer, scheduler


def select_amp(amp: str, device: torch.device) -> str:
    """Return "none", "bf16" or "fp16", the type that ``amp`` selects on a device.

    "auto" is bfloat16 where the device computes in it, else float16 on a GPU and
    float32 on a CPU.  A slow choice is logged.

    Args:
      amp: "none", "auto", "bf16" or "fp16".
    """
    on_gpu = device.type == "cuda"
    # Not torch.cuda.is_bf16_supported(), which includes emulation.
    is_fast = (
        torch.cuda.get_device_capability(device) >= (8, 0)
        if on_gpu
        else has_fast_bf16()
    )
    if amp == "auto":
        return "bf16" if is_fast else ("fp16" if on_gpu else "none")
    if amp == "bf16" and not is_fast:
        logging.warning(
            "amp: this %s has no fast bfloat16, training is several times slower than "
            "with amp: auto",
            "GPU" if on_gpu else "CPU",
        )
    return amp


def make_autocast(
    amp: str, device: torch.device
) -> Callable[[], contextlib.AbstractContextManager]:
    """Return a function that opens the context of a forward pass.

    Args:
      amp: "none", "bf16" or "fp16".
    """
    if amp == "none":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, AMP_DTYPES[amp])


def load_initial_weights(
    model: AsrModel, weights: Mapping[str, Tensor], where: str, encoder_only: bool
) -> list[str]:
    """Load the weights of another model, part by part.

    A part is a direct child module of the model.  ``weights`` must have front end and
    encoder.  Any other part that they lack keeps its random weights.

    Args:
      where: option and file of ``weights``, for messages.
      encoder_only: True loads only front end and encoder.
    Returns:
      Names of the parts that were not loaded, sorted.
    Raises:
      ValueError: if a tensor of a part is missing or has another shape.
    """
    own = model.state_dict()
    here, there = ({k.split(".")[0] for k in d} for d in (own, weights))
    loaded = here & set(ENCODER)
    if not encoder_only:
        loaded |= here & there
    given = {k: v for k, v in weights.items() if k.split(".")[0] in loaded}
    own = {k: v for k, v in own.items() if k.split(".")[0] in loaded}
    wrong = [
        f"{k}: {_shape(given.get(k))} in the file, {_shape(own.get(k))} in the model"
        for k in sorted(set(given) | set(own))
        if _shape(given.get(k)) != _shape(own.get(k))
    ]
    if wrong:
        raise ValueError(
            f"{where}: the shape of the model differs in {len(wrong)} tensors: "
            + "; ".join(wrong[:5])
            + ". Set model to the shape of that checkpoint, or choose another."
        )
    model.load_state_dict(given, strict=False)
    new = sorted(here - loaded)
    logging.info("%s: loaded %s; random: %s", where, sorted(loaded), new or "none")
    if there - here:
        logging.info("%s: ignored unknown parts %s", where, sorted(there - here))
    return new


def _shape(tensor: Optional[Tensor]) -> str:
    return "none" if tensor is None else str(tuple(tensor.shape))
