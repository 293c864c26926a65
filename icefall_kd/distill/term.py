"""The interface of a term of the training loss, and helpers for terms.

To add a term:

1. Write a frozen dataclass of its options, with ``weight``, and a subclass of
   :class:`Term`, in a new module of this folder.
2. Add the class to ``TERMS`` in ``icefall_kd/distill/__init__.py``.

The options are then read from ``terms.<name>`` of the configuration.  The loss of a
batch is the sum of ``weight * output.sum / (student frames)`` over all terms; metrics
have the name of the term.
"""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch import Tensor, nn

from icefall_kd import ENCODER_SHIFT
from icefall_kd.core.config import ModelConfig
from icefall_kd.core.frames import LENGTH_TOLERANCE, Batch
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.fields.format import FieldInfo
from icefall_kd.transducer.model import AsrModel

# Reasons for which a term skips an utterance.
NO_TEXT = "no_text"
TOO_LONG = "text_too_long"  # the transcript has more tokens than the audio has frames
NO_TARGET = "no_target"
TOO_SHORT = "too_short"  # no frame is left after the delay


@dataclass(frozen=True)
class StudentOutput:
    """The encoder's output for a batch, and the model for the parts after it.

    Attributes:
      encoder_out: (N, T, C) float.
      lens:        (N,) int64, valid frames of 40 ms.
      model:       the student.
      heads:       term name -> the module that its ``build_heads`` returned.
      chunk_size:  of the encoder in this batch, frames of 20 ms; -1 is full context.
      stacks:      output of each encoder stack, (N, T50, C_i) float, frames of 20 ms;
                   empty unless a term sets ``needs_stacks``.
    """

    encoder_out: Tensor
    lens: Tensor
    model: AsrModel
    heads: nn.ModuleDict
    chunk_size: int
    stacks: tuple[Tensor, ...] = ()

    def lag(self, delay: int) -> int:
        """Return the delay that applies to this batch, in frames.

        With full context the student sees as much future as its teacher: no delay.
        """
        return delay if self.chunk_size > 0 else 0


@dataclass(frozen=True)
class TermOutput:
    """Value of a term over a batch.

    Attributes:
      sum:      scalar float32 with gradient, summed over frames or utterances.
      count:    number of these frames or utterances.
      extras:   name -> (sum, count) of further metrics to log.
      suspects: indexes of utterances whose loss is not finite.
      skipped:  reason -> indexes of utterances that the term does not use.
    """

    sum: Tensor
    count: int
    extras: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    suspects: tuple[int, ...] = ()
    skipped: dict[str, list[int]] = field(default_factory=dict)


class Term(abc.ABC):
    """A weighted part of the loss.

    A class sets ``name``, ``options`` and ``frame_targets``.  Other attributes have
    defaults; the constructor may set them from the options.

    Attributes:
      name:          key in ``TERMS``, in the configuration and in the logs.
      options:       dataclass of the options, including ``weight``.
      frame_targets: True if targets belong to frames of the audio, so that no
                     augmentation may move the student's frames in time.
      needs_text:    True if the term reads ``batch["tokens"]``.
      needs_stacks:  True if the term reads ``StudentOutput.stacks``.
      fields:        Shar fields that the term reads from ``batch["fields"]``.
      trains:        attributes of the model that receive its gradient, without the
                     encoder.  Training freezes parts that no term lists.
      delay:         lag of the student in batches with chunks, frames of 40 ms.
      packages:      optional packages that the term imports.
      teacher_extra: name of the extra that is the teacher's part of the loss, where the
                     sum contains more or is warmed up; "" for the sum.
    """

    name: str
    options: type
    frame_targets: bool
    needs_text: bool = False
    needs_stacks: bool = False
    fields: tuple[str, ...] = ()
    trains: tuple[str, ...] = ()
    delay: int = 0
    packages: tuple[str, ...] = ()
    teacher_extra: str = ""

    def __init_subclass__(cls) -> None:
        """Require a declaration of ``frame_targets``: a wrong default spoils training.

        Raises:
          TypeError: if the class inherits it.
        """
        super().__init_subclass__()
        if not isinstance(vars(cls).get("frame_targets"), bool):
            raise TypeError(
                f"class {cls.__name__} does not set frame_targets. Set it to True if "
                "the targets are frames of the audio, else to False"
            )

    def __init__(self, config: Any) -> None:
        """Store the options; a subclass checks them.

        Args:
          config: dataclass of type :attr:`options`.
        Raises:
          ValueError: if an option is invalid.
        """
        self.config = config

    @property
    def teacher_metric(self) -> str:
        """Return the name of the metric that shows learning from the teacher."""
        return f"{self.name}.{self.teacher_extra}" if self.teacher_extra else self.name

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> Optional[nn.Module]:
        """Check fields and model, and return the module that the term trains, if any.

        Training calls it once, before the first batch.

        Args:
          field_infos: ``FieldInfo`` of each field in :attr:`fields`.
        Raises:
          ValueError: if a field or the model does not suit the term.
        """
        return None

    @abc.abstractmethod
    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Return the value of the term.

        Args:
          batch: see :mod:`icefall_kd.dataset.dataset`; on the student's device.
          step:  number of updates so far, for schedules.
        """


def zero_output(
    student: StudentOutput, skipped: Optional[dict[str, list[int]]] = None
) -> TermOutput:
    """Return the output for a batch without an utterance that the term can use.

    Args:
      skipped: reason -> indexes; None if no utterance has a target.
    """
    zero = student.encoder_out.new_zeros((), dtype=torch.float32)
    if skipped is None:
        skipped = {NO_TARGET: list(range(len(student.lens)))}
    return TermOutput(zero, 0, skipped=skipped)


def check_not_negative(config: Any, group: str, *options: str) -> None:
    """Check that options are at least 0.

    Args:
      config: dataclass of the options.
      group:  name of the group for the error message, for example "terms.ctc".
    Raises:
      ValueError: if an option is negative.
    """
    for option in options:
        value = getattr(config, option)
        if value < 0:
            raise ValueError(f"{group}.{option}: {value} is negative")


def find_non_finite(values: Tensor) -> list[int]:
    """Return the indexes n for which ``values[n]`` is not finite throughout."""
    finite = torch.isfinite(values.detach())
    if finite.dim() > 1:
        finite = finite.flatten(1).all(dim=1)
    return (~finite).nonzero().flatten().tolist()


def list_skipped_texts(
    tokens: Sequence[Sequence[int]], skipped: Tensor
) -> dict[str, list[int]]:
    """Return reason -> indexes of the utterances that a term on transcripts skips.

    Args:
      tokens:  N lists of token ids, empty without transcript.
      skipped: (N,) bool.
    """
    empty = torch.tensor([not t for t in tokens], device=skipped.device)
    return _list_indexes({NO_TEXT: skipped & empty, TOO_LONG: skipped & ~empty})


def list_skipped_targets(has_target: Tensor, lens: Tensor) -> dict[str, list[int]]:
    """Return reason -> indexes of the utterances that a term on fields skips.

    Args:
      has_target: (N,) bool.
      lens:       (N,) int64, student frames that the term compares.
    """
    return _list_indexes({NO_TARGET: ~has_target, TOO_SHORT: has_target & (lens == 0)})


def _list_indexes(reasons: Mapping[str, Tensor]) -> dict[str, list[int]]:
    found = {r: rows.nonzero().flatten().tolist() for r, rows in reasons.items()}
    return {reason: rows for reason, rows in found.items() if rows}


def find_targets(target: Mapping[str, Any], device: torch.device) -> Tensor:
    """Return which utterances have a target in a field of a batch, (N,) bool."""
    return (target["lens"] > 0).to(device)


def match_frames(
    student: Tensor, lens: Tensor, target: Mapping[str, Any], delay: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the frames of student and teacher that a term compares.

    Student frame i + ``delay`` is compared with teacher frame i.  Distributions cannot
    be averaged over time, so the teacher must have the student's frame rate.

    Args:
      student: (N, T, ...) float.
      lens:    (N,) int64, valid frames of the student.
      target:  field of a batch: "x" (N, T', W), "lens" (N,), "frame_shift" in seconds.
      delay:   in frames.
    Returns:
      student (N, K, ...), teacher (N, K, W), and the valid frames of both (N,), 0 for
      an utterance without target.
    Raises:
      ValueError: if the teacher has another rate, or its lengths differ by more than
        :data:`~icefall_kd.core.frames.LENGTH_TOLERANCE`.
    """
    if abs(target["frame_shift"] - ENCODER_SHIFT) > 1e-6:
        raise ValueError(
            f"the teacher has a frame every {target['frame_shift']} s, the student "
            f"every {ENCODER_SHIFT} s. Use a field with the student's frame shift"
        )
    target_lens = target["lens"].to(lens.device)
    apart = (target_lens - lens).abs() > LENGTH_TOLERANCE
    if (apart & (target_lens > 0)).any():
        raise ValueError(
            f"the teacher has {target_lens.tolist()} frames, the student "
            f"{lens.tolist()}. Extract the field again from this audio"
        )
    both = torch.minimum(target_lens, (lens - delay).clamp(min=0))
    count = int(both.max())
    x = target["x"][:, :count].to(student.device)
    return student[:, delay : delay + count], x, both


def check_kind(option: str, info: Any, kind: str) -> None:
    """Check the kind of a field.

    Raises:
      ValueError: naming the option, the field and both kinds.
    """
    if info.kind != kind:
        raise ValueError(
            f"{option}: field '{info.name}' is of kind '{info.kind}', not '{kind}'"
        )


def check_vocabulary(info: FieldInfo, tokenizer: Optional[Tokenizer]) -> None:
    """Check that a field of token distributions has the student's vocabulary.

    Equal sizes do not suffice: two BPE models of 500 pieces number different pieces.

    Args:
      info:      of a field of kind "ctc" or "path".
      tokenizer: of the student; None if it has none.
    Raises:
      ValueError: if the field has no vocabulary, or another one than the student.
    """
    sha256 = info.fingerprint.get("vocab_sha256")
    if sha256 is None:
        raise ValueError(
            f"field '{info.name}' of kind '{info.kind}' has no vocabulary. Use a field "
            "of kind 'ctc' or 'path' that bin.extract wrote"
        )
    if tokenizer is None:
        raise ValueError(
            f"field '{info.name}' holds token distributions, but the student has no "
            "tokens. Set data.bpe_model to the teacher's bpe.model"
        )
    if sha256 != tokenizer.sha256:
        raise ValueError(
            f"field '{info.name}' has the {info.fingerprint.get('vocab_size')} tokens "
            f"of BPE model {sha256[:12]}, the student the {tokenizer.vocab_size} of "
            f"{tokenizer.sha256[:12]} (SHA-256). Set data.bpe_model to the teacher's "
            "bpe.model, or use a teacher with the student's tokens"
        )
