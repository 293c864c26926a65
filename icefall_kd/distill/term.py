"""The base class of the terms of the training loss, and helpers for terms.

To add a term:

1. Write a frozen dataclass of its options, with ``weight``, and a subclass of
   :class:`Term`, in a new module of this folder.  Every option has a default.  The
   section "Attributes:" of the dataclass is its ``--help``.
2. Add the class to ``TERMS`` in ``icefall_kd/distill/__init__.py``.

Training then reads the options from ``terms.<name>`` of the configuration, and logs the
metrics ``<name>`` and ``<name>.<extra>``.  The loss of a batch is the sum of
``weight * output.sum / (student frames)`` over all terms.

:mod:`icefall_kd.distill.essence` is a short model of a term.  Terms use

- :func:`check_kind` and :func:`check_not_negative` to check fields and options;
- :func:`match_frames` to cut student and teacher to the same frames;
- :func:`icefall_kd.core.frames.unpack_topk` to read distributions of kind "ctc", and
  :func:`icefall_kd.core.frames.align_frames` to change the rate of embeddings;
- :func:`zero_output`, :func:`find_targets`, :func:`list_skipped_targets` and
  :func:`find_non_finite` to report utterances without a target or with NaN.
"""

import abc
import functools
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
TOO_LONG = "text_too_long"  # the transcript needs more frames than the audio has
NO_TARGET = "no_target"
TOO_SHORT = "too_short"  # the delay is at least as long as the audio


@dataclass(frozen=True)
class StudentOutput:
    """The student and the output of its encoder for a batch.

    Attributes:
      encoder_out: (N, T, C) float, frames of 40 ms.
      lens:        (N,) int64, valid frames of ``encoder_out``.
      model:       the student; terms call its predictor, joiner and CTC head.
      heads:       name of a term -> the module that its ``build_heads`` returned.
      chunk_size:  of the encoder in this batch, in frames of 20 ms; -1 is full context.
      stacks:      output of each encoder stack, (N, T', C_i) float, frames of 20 ms;
                   empty unless a term sets ``needs_stacks``.
    """

    encoder_out: Tensor
    lens: Tensor
    model: AsrModel
    heads: nn.ModuleDict
    chunk_size: int
    stacks: tuple[Tensor, ...] = ()

    @functools.cached_property
    def lens_cpu(self) -> Tensor:
        """``lens`` on the CPU; only the first use waits for the accelerator."""
        return self.lens.cpu()

    def lag(self, delay: int) -> int:
        """Return ``delay`` for a batch with chunks, and 0 for one with full context.

        With full context the student has as much future context as its teacher.
        """
        return delay if self.chunk_size > 0 else 0


@dataclass(frozen=True)
class TermOutput:
    """Value of a term over a batch.

    Attributes:
      sum:      scalar float32 with gradient, summed over frames, not averaged: training
                divides it by the student frames of the batch.
      count:    number of frames or utterances in ``sum``, for the logged mean only.
      extras:   name -> (sum, count) of further metrics to log.
      suspects: batch indexes of the utterances whose loss is not finite.
      skipped:  reason -> batch indexes of the utterances that the term does not use.
    """

    sum: Tensor
    count: int
    extras: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    suspects: tuple[int, ...] = ()
    skipped: dict[str, list[int]] = field(default_factory=dict)


class Term(abc.ABC):
    """A weighted part of the loss.

    A subclass sets ``name``, ``options``, ``frame_targets`` and ``trains``.  The
    other attributes have defaults; the constructor may set them from the options.

    Attributes:
      name:          key in ``TERMS``, in the configuration and in the logs.
      options:       dataclass of the options, including ``weight``.
      frame_targets: True if targets belong to frames of the audio, so that no
                     augmentation may move the student's frames in time.
      needs_text:    True if the term reads ``batch["tokens"]``.
      needs_stacks:  True if the term reads ``StudentOutput.stacks``.
      fields:        Shar fields that the term reads from ``batch["fields"]``.
      trains:        parts of the model besides the encoder that receive a gradient,
                     for example ("joiner",); () if none.  Training freezes parts that
                     no term lists.
      delay:         frames of 40 ms by which the student lags behind the teacher in
                     batches with chunks; from an option ``delay`` or ``shift``.
                     Training without chunks requires 0.
      packages:      optional packages that the term imports.
      teacher_extra: key in ``TermOutput.extras`` of the teacher's part of the loss, if
                     ``TermOutput.sum`` contains other parts or is warmed up, else "".
    """

    name: str
    options: type
    frame_targets: bool
    needs_text: bool = False
    needs_stacks: bool = False
    fields: tuple[str, ...] = ()
    trains: tuple[str, ...]
    delay: int = 0
    packages: tuple[str, ...] = ()
    teacher_extra: str = ""

    def __init_subclass__(cls) -> None:
        """Check the attributes of a subclass.

        A class must not inherit ``frame_targets`` and ``trains``: a wrong value spoils
        training without an error.

        Raises:
          TypeError: if an attribute is missing or of a wrong type.
        """
        super().__init_subclass__()
        declared, options = vars(cls), getattr(cls, "options", None)
        needed = {
            "name, the key in TERMS": isinstance(getattr(cls, "name", None), str),
            "options, a dataclass with weight": (
                "weight" in getattr(options, "__dataclass_fields__", ())
            ),
            "frame_targets, True if the targets are frames of the audio": (
                isinstance(declared.get("frame_targets"), bool)
            ),
            "trains, a tuple of parts of the model, () if it trains none": (
                isinstance(declared.get("trains"), tuple)
            ),
            "fields, a tuple of Shar fields": isinstance(cls.fields, tuple),
        }
        wrong = [attribute for attribute, is_set in needed.items() if not is_set]
        if wrong:
            raise TypeError(f"class {cls.__name__} must set {'; '.join(wrong)}")

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
        """Return the name of the metric that compares the student with its teacher."""
        return f"{self.name}.{self.teacher_extra}" if self.teacher_extra else self.name

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> Optional[nn.Module]:
        """Check fields and model, and return the module that the term trains, if any.

        Training calls it once, before the first batch.

        Args:
          model_config: shape of the student.
          field_infos:  field -> ``FieldInfo``, for all of :attr:`fields`.
        Raises:
          ValueError: if a field or the model does not suit the term.
        """
        return None

    @abc.abstractmethod
    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Return the value of the term for a batch.

        Args:
          batch: see :mod:`icefall_kd.dataset.dataset`; on the student's device.
          step:  number of updates so far, for warm-ups and random choices.
        """


def zero_output(
    student: StudentOutput, skipped: Optional[dict[str, list[int]]] = None
) -> TermOutput:
    """Return the output for a batch in which the term can use no utterance.

    Args:
      skipped: reason -> batch indexes; None means that no utterance has a target.
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
            raise ValueError(f"{group}.{option}: {value} is negative. Use 0 or more")


def find_non_finite(values: Tensor) -> list[int]:
    """Return the indexes n for which ``values[n]`` contains NaN or infinity."""
    finite = torch.isfinite(values.detach())
    if finite.dim() > 1:
        finite = finite.flatten(1).all(dim=1)
    return (~finite).nonzero().flatten().tolist()


def list_skipped_texts(
    tokens: Sequence[Sequence[int]], skipped: Tensor
) -> dict[str, list[int]]:
    """Return reason -> indexes of the utterances that a term on transcripts skips.

    Args:
      tokens:  N lists of token ids, empty for an utterance without transcript.
      skipped: (N,) bool, True for the skipped utterances.
    """
    empty = torch.tensor([not t for t in tokens], device=skipped.device)
    return _list_indexes({NO_TEXT: skipped & empty, TOO_LONG: skipped & ~empty})


def list_skipped_targets(has_target: Tensor, lens: Tensor) -> dict[str, list[int]]:
    """Return reason -> indexes of the utterances that a term on fields skips.

    Args:
      has_target: (N,) bool, from :func:`find_targets`.
      lens:       (N,) int64, student frames that the term compares.
    """
    return _list_indexes({NO_TARGET: ~has_target, TOO_SHORT: has_target & (lens == 0)})


def _list_indexes(reasons: Mapping[str, Tensor]) -> dict[str, list[int]]:
    found = {r: rows.nonzero().flatten().tolist() for r, rows in reasons.items()}
    return {reason: rows for reason, rows in found.items() if rows}


def find_targets(field: Mapping[str, Any], device: torch.device) -> Tensor:
    """Return whether each utterance has a target, (N,) bool.

    Args:
      field: an entry of ``batch["fields"]``.
    """
    return (field["lens"] > 0).to(device)


def match_frames(
    student: Tensor, lens: Tensor, batch: Batch, name: str, delay: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the frames of student and teacher that a term compares.

    Student frame i + ``delay`` is compared with teacher frame i.  Distributions cannot
    be averaged over time, so the teacher must have the student's frame rate.

    Args:
      student: (N, T, ...) float.
      lens:    (N,) int64, valid frames of the student.
      name:    of the field in the batch.
      delay:   in frames.
    Returns:
      student (N, K, ...), teacher (N, K, W), and the valid frames of both (N,), 0 for
      an utterance without target.
    Raises:
      ValueError: if the teacher has another rate, or its lengths differ by more than
        :data:`~icefall_kd.core.frames.LENGTH_TOLERANCE`.
    """
    target = batch["fields"][name]
    if abs(target["frame_shift"] - ENCODER_SHIFT) > 1e-6:
        raise ValueError(
            f"field '{name}' has a frame every {target['frame_shift']} s, the student "
            f"every {ENCODER_SHIFT} s. Use a field with the student's frame shift"
        )
    target_lens = target["lens"].to(lens.device)
    apart = (target_lens - lens).abs() > LENGTH_TOLERANCE
    if (apart & (target_lens > 0)).any():
        raise ValueError(
            f"field '{name}' has {target_lens.tolist()} frames in this batch, the "
            f"student {lens.tolist()}. Extract the field again from this audio"
        )
    both = torch.minimum(target_lens, (lens - delay).clamp(min=0))
    count = int(both.max())
    x = target["x"][:, :count].to(student.device)
    return student[:, delay : delay + count], x, both


def check_kind(option: str, info: Any, kind: str) -> None:
    """Check the kind of a field.

    Args:
      option: that contains the field, for the error message.
      info:   ``FieldInfo`` of the field.
      kind:   that the term needs.
    Raises:
      ValueError: if the field is of another kind.
    """
    if info.kind != kind:
        raise ValueError(
            f"{option}: field '{info.name}' is of kind '{info.kind}', not '{kind}'. "
            f"Give a field of kind '{kind}'"
        )


def check_vocabulary(info: FieldInfo, tokenizer: Optional[Tokenizer]) -> None:
    """Check that a field of token distributions has the student's vocabulary.

    Equal sizes do not suffice: two BPE models may have the same number of pieces.

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
            "of kind 'ctc' or 'path'; its teacher must put vocab_sha256 and vocab_size "
            "into Output.fingerprint"
        )
    if tokenizer is None:
        raise ValueError(
            f"field '{info.name}' contains token distributions, but the student has "
            "no tokens. Set data.bpe_model to the teacher's bpe.model"
        )
    if sha256 != tokenizer.sha256:
        raise ValueError(
            f"field '{info.name}' has the {info.fingerprint.get('vocab_size')} tokens "
            f"of BPE model {sha256[:12]}, the student the {tokenizer.vocab_size} of "
            f"{tokenizer.sha256[:12]} (SHA-256). Set data.bpe_model to the teacher's "
            "bpe.model, or use a teacher with the student's tokens"
        )
