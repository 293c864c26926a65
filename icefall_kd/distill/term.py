"""What a term of the training loss is.

The loop adds up terms and knows nothing else of them.  A term consumes Shar fields
and text; a new one is a file beside this and a line in :data:`TERMS` of
``icefall_kd.distill.terms``.

A teacher's frames that are distributions, beside the student's frames.

Whether a teacher's tokens are the student's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Protocol

import torch
from torch import Tensor, nn

from icefall_kd import ENCODER_SHIFT
from icefall_kd.core.config import ModelConfig
from icefall_kd.core.frames import Batch
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.fields.format import FieldInfo
from icefall_kd.transducer.model import AsrModel

# Why a term skips an utterance.
NO_TEXT = "no_text"
TOO_LONG = "text_too_long"  # for the frames of the utterance
NO_TARGET = "no_target"
TOO_SHORT = "too_short"  # no frame is left after the delay


@dataclass(frozen=True)
class StudentOutput:
    """What the student made of a batch.

    Attributes:
      encoder_out: (N, T, C) float.
      lens:        (N,) int64, valid frames of 40 ms.
      model: the student, for terms that go on from its encoder.
      heads: the heads of all terms by term name.
      chunk_size: of the encoder in this batch, frames of 20 ms; -1 is full context.
      stacks: outputs of the encoder's stacks, each (N, T50, C_i) float in frames of
        20 ms; empty unless a term asks for them.
    """

    encoder_out: Tensor
    lens: Tensor
    model: AsrModel
    heads: nn.ModuleDict
    chunk_size: int
    stacks: tuple[Tensor, ...] = ()

    def lag(self, delay: int) -> int:
        """Return by how many frames the student may lag behind a teacher.

        In chunks it sees little of the future, and that is ``delay``; with full
        context it sees what the teacher saw, and that is 0.
        """
        return delay if self.chunk_size > 0 else 0


@dataclass(frozen=True)
class TermOutput:
    """Value of a term over a batch.

    Attributes:
      sum: scalar with gradient, summed over what the term counts.
      count: frames or utterances behind ``sum``.
      extras: further figures to log, each (sum, count).
      suspects: indexes of utterances whose own loss is not finite.
      skipped: reason -> indexes of utterances that the term could not use.
    """

    sum: Tensor
    count: int
    extras: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    suspects: tuple[int, ...] = ()
    skipped: dict[str, list[int]] = field(default_factory=dict)


class Term(Protocol):
    """A weighted part of the loss.

    Attributes:
      name: key in ``TERMS``, the config and the logs.
      options: dataclass of its options, ``weight`` among them.
      needs_text: True if batches must carry token ids.
      needs_stacks: True if it reads the outputs of the encoder's stacks.
      frame_targets: True if its targets are frames of the audio, which nothing may
        move in time on the student's side alone.  Each class declares it.
      fields: Shar fields read.
      trains: attributes of the model that the term's gradient reaches, beside the
        encoder; what no term trains is left out of the optimiser.

    Where that depends on its options, the class has ``trains_with(options)``.  A term
    that imports a package which is not always there has its name in ``packages``.

    A term whose value is more than its teacher's part, or is warmed up, has the name of
    the extra that is that part in ``taught``.
    """

    name: str
    options: type
    needs_text: bool
    needs_stacks: bool
    frame_targets: bool
    fields: tuple[str, ...]
    trains: tuple[str, ...]

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> Optional[nn.Module]:
        """Return what the term trains beside the student, if anything."""

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Evaluate the term; ``step`` counts updates, for schedules."""


def skipped_texts(
    tokens: Sequence[Sequence[int]], skipped: Tensor
) -> dict[str, list[int]]:
    """Return reason -> indexes of the utterances that a term on texts skips.

    Args:
      tokens: N lists of ids; empty where there is no transcript.
      skipped: (N,) bool.
    """
    empty = torch.tensor([not t for t in tokens], device=skipped.device)
    return _indexes({NO_TEXT: skipped & empty, TOO_LONG: skipped & ~empty})


def skipped_targets(has_target: Tensor, lens: Tensor) -> dict[str, list[int]]:
    """Return reason -> indexes of the utterances that a term on targets skips.

    Args:
      has_target: (N,) bool.
      lens: (N,) int64, student frames that the term compares.
    """
    return _indexes({NO_TARGET: ~has_target, TOO_SHORT: has_target & (lens == 0)})


def _indexes(reasons: Mapping[str, Tensor]) -> dict[str, list[int]]:
    found = {r: rows.nonzero().flatten().tolist() for r, rows in reasons.items()}
    return {reason: rows for reason, rows in found.items() if rows}


def teacher_metric(term: Term) -> str:
    """Return the name, in the metrics, of the figure that the term's teacher lowers."""
    part = getattr(term, "taught", "")
    return f"{term.name}.{part}" if part else term.name


_TOLERANCE = 2  # frames that a teacher may have more or less than the student


def check_kind(option: str, info: Any, kind: str) -> None:
    """Refuse a field of another kind than a term reads.

    Raises:
      ValueError: naming the option, the field and both kinds.
    """
    if info.kind != kind:
        raise ValueError(
            f"{option}: field '{info.name}' is of kind '{info.kind}', not '{kind}'"
        )


def has_targets(target: Mapping[str, Any]) -> bool:
    """Return whether any utterance of a batch has a target in this field."""
    return int(target["lens"].max()) > 0


def nothing(student: StudentOutput) -> TermOutput:
    """Return what a term says of a batch without any target."""
    zero = student.encoder_out.new_zeros((), dtype=torch.float32)
    return TermOutput(zero, 0, skipped={NO_TARGET: list(range(len(student.lens)))})


def delayed(
    student: Tensor, lens: Tensor, target: Mapping[str, Any], delay: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the frames of the student and of the teacher that answer each other.

    Student frame i + delay answers for teacher frame i.  Distributions cannot be
    averaged over time as embeddings are: the teacher must have the student's rate.

    An utterance of which the teacher has no frame has none in the result.

    Args:
      student: (N, T, ...) float.
      lens:    (N,) int64, valid frames of the student.
      target:  a field of a batch: "x" (N, T', W), "lens" (N,), "frame_shift".
      delay:   frames.
    Returns:
      student (N, K, ...), teacher (N, K, W), and the valid frames of both (N,).
    Raises:
      ValueError: if the teacher has another rate, or its lengths differ by more than
        two frames.
    """
    if abs(target["frame_shift"] - ENCODER_SHIFT) > 1e-6:
        raise ValueError(
            f"distributions every {target['frame_shift']} s cannot be compared with a "
            f"student's every {ENCODER_SHIFT} s; use a teacher of the student's rate"
        )
    theirs = target["lens"].to(lens.device)
    if (((theirs - lens).abs() > _TOLERANCE) & (theirs > 0)).any():
        raise ValueError(
            f"the teacher has {theirs.tolist()} frames, the student {lens.tolist()}"
        )
    both = torch.minimum(theirs, (lens - delay).clamp(min=0))
    count = int(both.max())
    x = target["x"][:, :count].to(student.device)
    return student[:, delay : delay + count], x, both


def check_vocabulary(info: FieldInfo, tokenizer: Optional[Tokenizer]) -> None:
    """Refuse a field of token distributions over another vocabulary than the student's.

    Equal sizes do not suffice: two BPE models of 500 pieces number different pieces.

    Args:
      info:      of a field of kind "ctc".
      tokenizer: of the student; None where it has none.
    Raises:
      ValueError: if the field says nothing of tokens, or of others; the message names
        both vocabularies.
    """
    theirs = info.fingerprint.get("vocab_sha256")
    if theirs is None:
        raise ValueError(
            f"field '{info.name}' of kind '{info.kind}' is over no vocabulary; a term "
            "over tokens wants one of kind 'ctc' or 'path'"
        )
    if tokenizer is None:
        raise ValueError(
            f"field '{info.name}' is over tokens and the student has none; give the "
            "training the teacher's bpe.model"
        )
    if theirs != tokenizer.sha256:
        raise ValueError(
            f"field '{info.name}' is over the {info.fingerprint.get('vocab_size')} "
            f"tokens of the BPE model {theirs[:12]}, the student over the "
            f"{tokenizer.vocab_size} of {tokenizer.sha256[:12]} (SHA-256); train it "
            "with the teacher's bpe.model, or take a teacher of the student's tokens"
        )
