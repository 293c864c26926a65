"""Term ``essence``: only what matters of an ensemble's distributions, frame by frame.

    - sum_t w_t * sum_{k in E_t} q~_t[k] * log p_student[t, k]

q_t is the mean of the teachers' CTC distributions, E_t its most probable tokens (at
most ``size``, and of these the fewest that reach ``mass``), q~_t its renormalised part
there.  ``size`` 1 is a pseudo-label a frame; all tokens is classic distillation.
Source: essence knowledge distillation, 2019, arXiv:1906.10834;
the two rules of selection and the weight of frames that are not blank are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from icefall_kd import BLANK_ID
from icefall_kd.core.config import ModelConfig
from icefall_kd.core.frames import Batch, average_topk, make_pad_mask, unpack_topk
from icefall_kd.distill.losses import cross_entropy, essence
from icefall_kd.distill.term import (
    StudentOutput,
    TermOutput,
    check_kind,
    delayed,
    has_targets,
    nothing,
    skipped_targets,
)


@dataclass(frozen=True)
class EssenceConfig:
    """Options of the ``essence`` term.

    Attributes:
      weight: of the term in the loss.
      teachers: Shar fields of kind ``ctc``, of one vocabulary; the ensemble.
      size: tokens kept of a frame at most; None keeps all that the fields hold.
      mass: of probability that is enough; None keeps ``size``.
      temperature: above 1 flattens the teachers' distribution.
      token_weight: of frames whose best token is not the blank; of others 1.
      delay: frames of 40 ms that the student may lag behind the teachers in batches
        with chunks; with full context there is none.
    """

    weight: float = 0.5
    teachers: tuple[str, ...] = ()
    size: Optional[int] = 10
    mass: Optional[float] = None
    temperature: float = 1.0
    token_weight: float = 2.0
    delay: int = 0


class EssenceTerm:
    """See the module's docstring."""

    name = "essence"
    options = EssenceConfig
    needs_stacks = False
    needs_text = False
    frame_targets = True
    trains = ("ctc_output",)

    def __init__(self, config: EssenceConfig) -> None:
        """Check the options.

        Raises:
          ValueError: if there is no teacher, or an option is out of range.
        """
        if not config.teachers:
            raise ValueError("terms.essence.teachers is empty; name fields of kind ctc")
        if config.delay < 0 or config.token_weight < 0:
            raise ValueError(
                "terms.essence: delay and token_weight must not be negative"
            )
        essence(torch.zeros(1, max(config.size or 1, 1)), config.size, config.mass)
        if config.temperature <= 0:
            raise ValueError(
                f"terms.essence.temperature is {config.temperature}, must be positive"
            )
        self.config = config
        self.fields = tuple(config.teachers)

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> None:
        """Check the fields; the model has what this term needs.

        Raises:
          ValueError: if a field is of another kind, or keeps too few tokens.
        """
        kept = 0
        for name in self.fields:
            check_kind("terms.essence.teachers", field_infos[name], "ctc")
            kept += field_infos[name].dim // 2
        if self.config.size is not None and self.config.size > kept:
            raise ValueError(
                f"terms.essence.size is {self.config.size}, but the fields "
                f"{list(self.fields)} keep {kept} tokens of a frame"
            )

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Sum the cross-entropy over the frames that the teachers answer for."""
        if not all(has_targets(batch["fields"][name]) for name in self.fields):
            return nothing(student)
        log_probs = student.model.ctc_output(student.encoder_out)
        target_lens = [batch["fields"][name]["lens"] for name in self.fields]
        has_target = torch.stack(target_lens).amin(dim=0).to(student.lens.device) > 0
        ids, values, log_probs, lens = self._targets(
            log_probs, student.lens, batch, student.lag(self.config.delay)
        )
        size = min(self.config.size or ids.size(-1), ids.size(-1))
        weights = essence(values, size, self.config.mass, self.config.temperature)
        per_frame = cross_entropy(log_probs, ids, weights)
        spoken = (ids[..., 0] != BLANK_ID).to(per_frame.dtype)
        per_frame = per_frame * (1.0 + (self.config.token_weight - 1.0) * spoken)
        mask = make_pad_mask(lens, per_frame.size(1))
        per_frame = per_frame.masked_fill(mask, 0.0)
        bad = ~torch.isfinite(per_frame.detach()).all(dim=1)
        return TermOutput(
            sum=per_frame.sum(),
            count=int(lens.sum()),
            suspects=tuple(bad.nonzero().flatten().tolist()),
            skipped=skipped_targets(has_target, lens),
        )

    def _targets(
        self, log_probs: Tensor, lens: Tensor, batch: Batch, delay: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the ensemble's ids and log-probabilities, and the student's frames."""
        parts = []
        for name in self.fields:
            parts.append(delayed(log_probs, lens, batch["fields"][name], delay))
        both = torch.stack([p[2] for p in parts]).amin(dim=0)
        count = int(both.max())
        told = [x[:, :count] for _, x, _ in parts]
        mean = told[0]
        if len(told) > 1:
            shares = [1.0 / len(told)] * len(told)
            kept = sum(x.size(-1) // 2 for x in told)  # by all; of one token or many
            vocab_size = log_probs.size(-1)
            mean = average_topk(told, shares, vocab_size, min(kept, vocab_size))
        ids, values, _ = unpack_topk(mean)
        return ids, values, parts[0][0][:, :count], both
