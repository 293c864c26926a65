"""Term ``lfmmi``: divergence of label sequences, from teacher to student.

    KL( P_teacher(pi | X) || P_student(pi | X) )
        = ( tot(s) - <gamma, s> ) - ( tot(t) - <gamma, t> ),  gamma = d tot(t) / d t

over the paths pi of a denominator graph.  s and t are the CTC log-probabilities of
student and teacher.  tot is the log-sum of the scores of all paths.  gamma is the
teacher's occupancy of each token in each frame.  The term needs no transcripts.

Source: the prediction layer of DistillW2V2, 2023, arXiv:2303.09278 (modified LF-MMI);
the divergence on a lattice-free graph after Manohar et al., teacher-student training
with LF-MMI, 2018, SLT.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from icefall_kd.core.config import ModelConfig
from icefall_kd.core.frames import Batch, make_pad_mask, unpack_topk
from icefall_kd.distill.term import (
    StudentOutput,
    Term,
    TermOutput,
    check_kind,
    check_not_negative,
    find_non_finite,
    find_targets,
    list_skipped_targets,
    match_frames,
    zero_output,
)
from icefall_kd.transducer.denominator import compute_total_scores, load_denominator

_MIN_PROB = 1e-8  # minimum probability of a token outside the teacher's k best


@dataclass(frozen=True)
class LfmmiConfig:
    """Options of the ``lfmmi`` term.

    Attributes:
      weight: weight of the term in the loss; 0 turns it off.
      teacher: Shar field of kind ``ctc``.
      graph: file written by ``icefall_kd.bin.make_denominator``.
      scale: factor of both log-probabilities; below 1 flattens the occupancies.
      output_beam: pruning beam; paths worse than the best by more are left out.
      delay: frames of 40 ms by which the student lags behind the teacher in batches
        with chunks.
    """

    weight: float = 0.5
    teacher: str = ""
    graph: str = ""
    scale: float = 1.0
    output_beam: float = 10.0
    delay: int = 0


def make_dense_log_probs(frames: Tensor, vocab_size: int) -> Tensor:
    """Return a teacher's distribution over all tokens, (..., V) float32.

    The tokens outside the k best share the tail equally.

    Args:
      frames:     (..., 2 k + 1) float, of kind ``ctc``.
      vocab_size: V.
    Returns:
      normalised log-probabilities.
    """
    ids, values, tail = unpack_topk(frames)
    others = max(1, vocab_size - ids.size(-1))
    rest = (tail.clamp(min=0.0) / others).clamp(min=_MIN_PROB)
    dense = rest.unsqueeze(-1).expand(*rest.shape, vocab_size).log()
    return dense.scatter(-1, ids, values).log_softmax(dim=-1)


def compute_sequence_divergence(
    student: Tensor, teacher: Tensor, lens: Tensor, graph: Any, output_beam: float
) -> Tensor:
    """Return KL(teacher || student) over the paths of a graph, (N,) float64 in nats.

    Args:
      student: (N, T, V) float, log-probabilities.
      teacher: (N, T, V) float, log-probabilities; they receive no gradient.
      lens:    (N,) int64, valid frames, at least 1.
      graph:   from :func:`icefall_kd.transducer.denominator.build_denominator`.
      output_beam: pruning beam; paths worse than the best by more are left out.
    """
    mask = make_pad_mask(lens, student.size(1)).unsqueeze(-1)
    student = student.float().masked_fill(mask, 0.0)
    with torch.enable_grad():
        target = teacher.float().masked_fill(mask, 0.0).detach().requires_grad_()
        teacher_total = compute_total_scores(target, lens, graph, output_beam)
        (occupancies,) = torch.autograd.grad(teacher_total.sum(), target)
    target = target.detach()
    student_total = compute_total_scores(student, lens, graph, output_beam)
    inner = (occupancies.double() * (student - target).double()).sum(dim=(1, 2))
    return student_total - teacher_total.detach() - inner


class LfmmiTerm(Term):
    """Divergence of label sequences; see the module's docstring."""

    name = "lfmmi"
    options = LfmmiConfig
    frame_targets = True
    trains = ("ctc_output",)

    def __init__(self, config: LfmmiConfig) -> None:
        """Check the options and load the graph."""
        for option, content in (
            ("teacher", "a field of kind ctc"),
            ("graph", "a file written by icefall_kd.bin.make_denominator"),
        ):
            if not getattr(config, option):
                raise ValueError(f"terms.lfmmi.{option} is empty. Give {content}")
        check_not_negative(config, "terms.lfmmi", "delay")
        for option in ("scale", "output_beam"):
            value = getattr(config, option)
            if value <= 0:
                raise ValueError(
                    f"terms.lfmmi.{option}: {value} is invalid. Use a value above 0"
                )
        super().__init__(config)
        self.delay = config.delay
        self.graph, self.vocab_size = load_denominator(config.graph)
        self.fields = (config.teacher,)

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> None:
        """Check the field and the graph."""
        check_kind("terms.lfmmi.teacher", field_infos[self.config.teacher], "ctc")
        if self.vocab_size != model_config.vocab_size:
            raise ValueError(
                f"terms.lfmmi.graph: {self.config.graph} has {self.vocab_size} tokens, "
                f"the student {model_config.vocab_size}. Write the graph again with "
                "the student's bpe.model"
            )

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Sum the divergence over the utterances with a target."""
        field = self.config.teacher
        has_target = find_targets(batch["fields"][field], student.lens.device)
        if not has_target.any():
            return zero_output(student)
        log_probs = student.model.ctc_output(student.encoder_out)
        log_probs, x, lens = match_frames(
            log_probs, student.lens, batch, field, student.lag(self.delay)
        )
        skipped = list_skipped_targets(has_target, lens)
        rows = (lens > 0).nonzero().flatten()
        if len(rows) == 0:
            return zero_output(student, skipped)
        values = compute_sequence_divergence(
            self.config.scale * log_probs[rows],
            self.config.scale * make_dense_log_probs(x[rows], self.vocab_size),
            lens[rows],
            self.graph.to(log_probs.device),
            self.config.output_beam,
        )
        return TermOutput(
            sum=values.sum().float(),
            count=int(lens.sum()),
            suspects=tuple(rows[find_non_finite(values)].tolist()),
            skipped=skipped,
        )
