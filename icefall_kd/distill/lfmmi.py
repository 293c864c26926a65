"""Term ``lfmmi``: the divergence of whole label sequences, teacher to student.

    KL( P_teacher(pi | X) || P_student(pi | X) )
        = ( tot(s) - <gamma, s> ) - ( tot(t) - <gamma, t> ),  gamma = d tot(t) / d t

over the paths pi of a denominator graph, s and t the two's CTC log-probabilities, tot
the log-sum over all paths, gamma the teacher's occupancies.  It needs no transcript.
Source: the prediction layer of DistillW2V2, 2023, arXiv:2303.09278 (modified LF-MMI);
this form, sequence-level divergence on a lattice-free graph, after Manohar et al.,
teacher-student training with LF-MMI, 2018, SLT.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from icefall_kd.core.config import ModelConfig
from icefall_kd.core.frames import Batch, make_pad_mask, unpack_topk
from icefall_kd.distill.term import (
    StudentOutput,
    TermOutput,
    check_kind,
    delayed,
    has_targets,
    nothing,
    skipped_targets,
)
from icefall_kd.transducer.denominator import compute_total_scores, load_denominator

_TINY = 1e-8  # probability of a token that the teacher did not keep, at least


@dataclass(frozen=True)
class LfmmiConfig:
    """Options of the ``lfmmi`` term.

    Attributes:
      weight: of the term in the loss.
      teacher: Shar field of kind ``ctc``.
      graph: file of ``icefall_kd.bin.make_denominator``.
      scale: of both log-probabilities on the graph; below 1 softens the occupancies.
      output_beam: paths worse than the best by more are left out.
      delay: frames of 40 ms that the student may lag behind the teacher in batches
        with chunks; with full context there is none.
    """

    weight: float = 0.5
    teacher: str = ""
    graph: str = ""
    scale: float = 1.0
    output_beam: float = 10.0
    delay: int = 0


def dense_log_probs(frames: Tensor, vocab_size: int) -> Tensor:
    """Return a teacher's distribution over all tokens, its tail spread evenly.

    Args:
      frames: (..., 2 k + 1) float, of kind ``ctc``.
      vocab_size: V.
    Returns:
      (..., V) float32, log-probabilities.
    """
    ids, values, tail = unpack_topk(frames)
    others = max(1, vocab_size - ids.size(-1))
    rest = (tail.clamp(min=0.0) / others).clamp(min=_TINY)
    dense = rest.unsqueeze(-1).expand(*rest.shape, vocab_size).log()
    dense = dense.scatter(-1, ids, values)
    return dense.log_softmax(dim=-1)


def sequence_divergence(
    student: Tensor, teacher: Tensor, lens: Tensor, graph: Any, output_beam: float
) -> Tensor:
    """Return KL over the paths of a graph, (N,) float64 in nats, with gradient.

    Args:
      student, teacher: (N, T, V) float, log-probabilities.
      lens:  (N,) int64, valid frames, at least 1.
      graph: of :func:`icefall_kd.transducer.denominator.build_denominator`.
      output_beam: paths worse than the best by more are left out.
    """
    mask = make_pad_mask(lens, student.size(1)).unsqueeze(-1)
    student = student.float().masked_fill(mask, 0.0)
    with torch.enable_grad():
        goal = teacher.float().masked_fill(mask, 0.0).detach().requires_grad_()
        of_teacher = compute_total_scores(goal, lens, graph, output_beam)
        (occupancy,) = torch.autograd.grad(of_teacher.sum(), goal)
    goal = goal.detach()
    of_student = compute_total_scores(student, lens, graph, output_beam)
    inner = (occupancy.double() * (student - goal).double()).sum(dim=(1, 2))
    return of_student - of_teacher.detach() - inner


class LfmmiTerm:
    """See the module's docstring."""

    name = "lfmmi"
    options = LfmmiConfig
    needs_stacks = False
    needs_text = False
    frame_targets = True
    trains = ("ctc_output",)

    def __init__(self, config: LfmmiConfig) -> None:
        """Check the options.

        Raises:
          FileNotFoundError: if there is no such graph.
          ValueError: if the teacher or the graph is not given, or a number is out of
            range.
        """
        for option in ("teacher", "graph"):
            if not getattr(config, option):
                raise ValueError(f"terms.lfmmi.{option} is empty")
        if config.delay < 0 or config.scale <= 0 or config.output_beam <= 0:
            raise ValueError(
                "terms.lfmmi: delay must not be negative, scale and output_beam must "
                "be positive"
            )
        self.config = config
        self.graph, self.vocab_size = load_denominator(config.graph)
        self.fields = (config.teacher,)

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> None:
        """Check the field and the graph; the model has what this term needs.

        Raises:
          ValueError: if the field is of another kind, or the graph of another
            vocabulary.
        """
        check_kind("terms.lfmmi.teacher", field_infos[self.config.teacher], "ctc")
        if self.vocab_size != model_config.vocab_size:
            raise ValueError(
                f"terms.lfmmi.graph {self.config.graph} is of {self.vocab_size} "
                f"tokens, the student has {model_config.vocab_size}; make it again "
                "with the student's bpe.model"
            )

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Sum the divergence over the utterances."""
        target = batch["fields"][self.config.teacher]
        if not has_targets(target):
            return nothing(student)
        log_probs = student.model.ctc_output(student.encoder_out)
        log_probs, x, lens = delayed(
            log_probs,
            student.lens,
            target,
            student.lag(self.config.delay),
        )
        skipped = skipped_targets(target["lens"].to(lens.device) > 0, lens)
        rows = (lens > 0).nonzero().flatten()
        if len(rows) == 0:
            return replace(nothing(student), skipped=skipped)
        teacher = dense_log_probs(x[rows], self.vocab_size)
        values = sequence_divergence(
            self.config.scale * log_probs[rows],
            self.config.scale * teacher,
            lens[rows],
            self.graph.to(log_probs.device),
            self.config.output_beam,
        )
        bad = ~torch.isfinite(values.detach())
        return TermOutput(
            sum=values.sum().float(),
            count=int(lens.sum()),
            suspects=tuple(rows[bad].tolist()),
            skipped=skipped,
        )
