"""Term ``essence``: cross-entropy to the best tokens of an ensemble, frame by frame.

    -sum_t w_t * sum_{k in E_t} q~_t[k] * log p_student[t, k]

q_t is the mean of the teachers' CTC distributions.  E_t contains its most probable
tokens: at most ``size``, and of these the fewest that reach ``mass``.  q~_t is q_t
renormalised over E_t.  w_t is ``token_weight`` if the best token is not the blank,
else 1.  With ``size`` 1 the target of a frame is one token; with all tokens the term is
ordinary distillation.

Source: essence knowledge distillation, 2019, arXiv:1906.10834; the two selection rules
and w_t are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from icefall_kd import BLANK_ID
from icefall_kd.core.config import ModelConfig
from icefall_kd.core.frames import (
    Batch,
    average_topk,
    make_pad_mask,
    unpack_topk,
)
from icefall_kd.distill.losses import cross_entropy, select_essence
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


@dataclass(frozen=True)
class EssenceConfig:
    """Options of the ``essence`` term.

    Attributes:
      weight: weight of the term in the loss; 0 turns it off.
      teachers: Shar fields of kind ``ctc`` over one vocabulary; the ensemble.
      size: maximum number of tokens in a frame; None is all that the fields store.
      mass: total probability that the tokens must reach, 0 to 1; None selects ``size``
        tokens.
      temperature: above 1 flattens the teachers' distribution.
      token_weight: weight of frames whose best token is not the blank; others have 1.
      delay: frames of 40 ms by which the student lags behind the teachers in batches
        with chunks.
    """

    weight: float = 0.5
    teachers: tuple[str, ...] = ()
    size: Optional[int] = 10
    mass: Optional[float] = None
    temperature: float = 1.0
    token_weight: float = 2.0
    delay: int = 0


class EssenceTerm(Term):
    """Cross-entropy to an ensemble's best tokens; see the module's docstring."""

    name = "essence"
    options = EssenceConfig
    frame_targets = True
    trains = ("ctc_output",)

    def __init__(self, config: EssenceConfig) -> None:
        """Check the options."""
        if not config.teachers:
            raise ValueError("terms.essence.teachers is empty. Give fields of kind ctc")
        check_not_negative(config, "terms.essence", "delay", "token_weight")
        if config.size is not None and config.size < 1:
            raise ValueError(
                f"terms.essence.size: {config.size} is below 1. Use 1 or more"
            )
        try:
            frame = torch.zeros(1, config.size or 1)
            select_essence(frame, config.size, config.mass, config.temperature)
        except ValueError as e:
            raise ValueError(f"terms.essence.{e}") from e
        super().__init__(config)
        self.delay = config.delay
        self.fields = tuple(config.teachers)

    def build_heads(
        self, model_config: ModelConfig, field_infos: Mapping[str, Any]
    ) -> None:
        """Check the fields."""
        num_stored = 0
        for name in self.fields:
            check_kind("terms.essence.teachers", field_infos[name], "ctc")
            num_stored += field_infos[name].dim // 2
        if self.config.size is not None and self.config.size > num_stored:
            raise ValueError(
                f"terms.essence.size is {self.config.size}, but the fields "
                f"{list(self.fields)} store {num_stored} tokens in a frame. Reduce it"
            )

    def __call__(self, student: StudentOutput, batch: Batch, step: int) -> TermOutput:
        """Sum the cross-entropy over utterances with a target of every teacher."""
        device, config = student.lens.device, self.config
        has_target = torch.stack(
            [find_targets(batch["fields"][name], device) for name in self.fields]
        )
        if not has_target.any(dim=1).all():
            return zero_output(student)
        log_probs = student.model.ctc_output(student.encoder_out)
        log_probs, ids, values, lens = self._average_teachers(
            log_probs, student.lens, batch, student.lag(self.delay)
        )
        size = min(config.size or ids.size(-1), ids.size(-1))
        weights = select_essence(values, size, config.mass, config.temperature)
        per_frame = cross_entropy(log_probs, ids, weights)
        is_token = (ids[..., 0] != BLANK_ID).to(per_frame.dtype)
        per_frame = per_frame * (1.0 + (config.token_weight - 1.0) * is_token)
        mask = make_pad_mask(lens, per_frame.size(1))
        per_frame = per_frame.masked_fill(mask, 0.0)
        return TermOutput(
            sum=per_frame.sum(),
            count=int(lens.sum()),
            suspects=tuple(find_non_finite(per_frame)),
            skipped=list_skipped_targets(has_target.all(dim=0), lens),
        )

    def _average_teachers(
        self, log_probs: Tensor, lens: Tensor, batch: Batch, delay: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the frames to compare, of the student and the teachers' mean.

        Args:
          log_probs: (N, T, V) float, the student's.
          lens:      (N,) int64, valid frames.
          delay:     in frames.
        Returns:
          the student's (N, K, V) log-probabilities, the mean's ids (N, K, k) and
          log-probabilities (N, K, k), and the valid frames (N,).
        """
        matched = [
            match_frames(log_probs, lens, batch, name, delay) for name in self.fields
        ]
        common = torch.stack([valid for _, _, valid in matched]).amin(dim=0)
        count = int(common.max())
        frames = [x[:, :count] for _, x, _ in matched]
        mean = frames[0]
        if len(frames) > 1:
            weights = [1.0 / len(frames)] * len(frames)
            # The mean has at most as many tokens as all teachers store.
            num_stored = sum(x.size(-1) // 2 for x in frames)
            vocab_size = log_probs.size(-1)
            num_tokens = min(num_stored, vocab_size)
            mean = average_topk(frames, weights, vocab_size, num_tokens)
        ids, values, _ = unpack_topk(mean)
        return matched[0][0][:, :count], ids, values, common
