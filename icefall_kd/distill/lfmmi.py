"""Term ``lfmmi``: divergence of label sequences, from teacher to student.

    KL( P_teacher(pi | X) || P_student(pi | X) )
        = ( tot(s) - <gamma, s> ) - ( tot(t) - <gamma, t> ),  gamma = d tot(t) / d t

over the label sequences pi, scored by a bigram of tokens.  s and t are the CTC
log-probabilities of student and teacher.  tot is the log-sum of the scores of all
sequences (``transducer.denominator``).  gamma is the teacher's occupancy of each token
in each frame.  The term needs no transcripts.

Source: the prediction layer of DistillW2V2, 2023, arXiv:2303.09278 (modified LF-MMI);
the divergence without lattices after Manohar et al., teacher-student training
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
from icefall_kd.transducer.bigram import load_bigram
from icefall_kd.transducer.denominator import sum_label_sequences

_MIN_PROB = 1e-8  # minimum probability of a token outside the teacher's k best


@dataclass(frozen=True)
class LfmmiConfig:
    """Options of the ``lfmmi`` term.

    Attributes:
      weight: weight of the term in the loss; 0 turns it off.
      teacher: Shar field of kind ``ctc``.
      bigram: file written by ``icefall_kd.bin.make_bigram``.
      scale: factor of both log-probabilities; below 1 flattens the occupancies.
      delay: frames of 40 ms by which the student lags behind the teacher in batches
        with chunks.
    """

    weight: float = 0.5
    teacher: str = ""
    bigram: str = ""
    scale: float = 1.0
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
    student: Tensor, teacher: Tensor, lens: Tensor, bigram: Tensor
) -> Tensor:
    """Return KL(teacher || student) over label sequences, (N,) float64 in nats.

    Args:
      student: (N, T, V) float, log-probabilities.
      teacher: (N, T, V) float, log-probabilities; they receive no gradient.
      lens:    (N,) int64, valid frames, at least 1.
      bigram:  (V, V) float, from :func:`icefall_kd.transducer.bigram.load_bigram`.
    """
    mask = make_pad_mask(lens, student.size(1)).unsqueeze(-1)
    student = student.float().masked_fill(mask, 0.0)
    teacher = teacher.detach().float().masked_fill(mask, 0.0)
    totals, occupancies = sum_label_sequences(
        torch.cat([student, teacher]), torch.cat([lens, lens]), bigram
    )
    of_student, of_teacher = totals.chunk(2)
    gamma = occupancies[len(lens) :].double()
    inner = (gamma * (student - teacher).double()).sum(dim=(1, 2))
    return of_student - of_teacher - inner


class LfmmiTerm(Term):
    """Divergence of label sequences; see the module's docstring."""

    name = "lfmmi"
    options = LfmmiConfig
    frame_targets = True
    trains = ("ctc_output",)

    def __init__(self, config: LfmmiConfig) -> None:
        """Check the options and load the bigram."""
        for option, content in (
            ("teacher", "a field of kind ctc"),
            ("bigram", "a file written by icefall_kd.bin.make_bigram"),
        ):
            if not getattr(config, option):
                raise ValueError(f"terms.lfmmi.{option} is empty. Give {content}")
        check_not_negative(config, "terms.lfmmi", "delay")
        if config.scale <= 0:
            raise ValueError(
                f"terms.lfmmi.scale: {config.scale} is invalid. Use a value above 0"
            )
        super().__init__(config)
        self.delay = config.delay
        self.bigram = load_bigram(config.bigram)
        self.fields = (config.teacher,)

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> None:
        """Check the field and the bigram."""
        check_kind("terms.lfmmi.teacher", field_infos[self.config.teacher], "ctc")
        if len(self.bigram) != model_config.vocab_size:
            raise ValueError(
                f"terms.lfmmi.bigram: {self.config.bigram} has {len(self.bigram)} "
                f"tokens, the student {model_config.vocab_size}. Write the bigram "
                "again with the student's bpe.model"
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
            self.config.scale * make_dense_log_probs(x[rows], len(self.bigram)),
            lens[rows],
            self.bigram,
        )
        return TermOutput(
            sum=values.sum().float(),
            count=int(lens.sum()),
            suspects=tuple(rows[find_non_finite(values)].tolist()),
            skipped=skipped,
        )
