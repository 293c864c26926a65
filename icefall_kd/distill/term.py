"""What a term of the training loss is.

The loop adds up terms and knows nothing else of them.  A term consumes Shar fields
and text; a new one is a file beside this and a line in :data:`TERMS` of
``icefall_kd.distill.terms``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Protocol

from torch import Tensor, nn

from icefall_kd.config import ModelConfig
from icefall_kd.transducer.model import AsrModel

Batch = Mapping[str, Any]  # as icefall_kd.data.batches describes it


@dataclass(frozen=True)
class StudentOutput:
    """What the student made of a batch.

    Attributes:
      encoder_out: (N, T, C) float.
      lens:        (N,) int64, valid frames of 40 ms.
      model: the student, for terms that go on from its encoder.
      heads: the heads of all terms by term name.
      stacks: outputs of the encoder's stacks, each (N, T50, C_i) float in frames of
        20 ms; empty unless a term asks for them.
    """

    encoder_out: Tensor
    lens: Tensor
    model: AsrModel
    heads: nn.ModuleDict
    stacks: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class TermOutput:
    """Value of a term over a batch.

    Attributes:
      sum: scalar with gradient, summed over what the term counts.
      count: frames or utterances behind ``sum``.
      extras: further figures to log, each (sum, count).
      suspects: indexes of utterances whose own loss is not finite.
      skipped: utterances that the term could not use.
    """

    sum: Tensor
    count: int
    extras: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    suspects: tuple[int, ...] = ()
    skipped: int = 0


class Term(Protocol):
    """A weighted part of the loss.

    Attributes:
      name: key in ``TERMS``, the config and the logs.
      options: dataclass of its options, ``weight`` among them.
      needs_text: True if batches must carry token ids.
      needs_stacks: True if it reads the outputs of the encoder's stacks.
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
    fields: tuple[str, ...]
    trains: tuple[str, ...]

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> Optional[nn.Module]:
        """Return what the term trains beside the student, if anything."""

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Evaluate the term; ``step`` counts updates, for schedules."""


def taught_figure(term: Term) -> str:
    """Return the name, in the metrics, of the figure that the term's teacher lowers."""
    part = getattr(term, "taught", "")
    return f"{term.name}.{part}" if part else term.name
