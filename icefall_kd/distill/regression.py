"""Regression heads and their losses, for the terms ``embedding`` and ``hidden``."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from icefall_kd.distill.losses import FRAME_LOSSES, sum_frame_loss
from icefall_kd.distill.term import TermOutput, list_skipped_targets
from icefall_kd.zipformer.scaling import scaled_linear

_MIN_STD = 1e-5  # avoids a division by zero for constant dimensions


class RegressionHead(nn.Module):
    """Predicts a teacher's normalised embeddings from the student's frames.

    Normalisation makes teachers and layers of different scale comparable.  The
    prediction is a linear projection of the student's frames.  Without projection, the
    student's frames are normalised like the teacher's, so a student with the teacher's
    weights has no loss.
    """

    def __init__(
        self,
        dim: int,
        mean: Sequence[float],
        std: Sequence[float],
        project: bool = True,
        min_std_share: float = 0.0,
    ) -> None:
        """Build the head.

        Args:
          dim: C, dimension of the student's frames.
          mean, std: of the D dimensions of the teacher's field.
          project: whether to project the student's frames; if not, C must be D.
          min_std_share: minimum std of a dimension, relative to the mean std.
        """
        super().__init__()
        std = torch.tensor(std, dtype=torch.float32)
        min_std = max(_MIN_STD, min_std_share * float(std.mean()))
        # With small weights, predictions start near the mean of the targets, zero.
        self.proj = (
            scaled_linear(dim, len(mean), initial_scale=0.25) if project else None
        )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", std.clamp(min=min_std))

    def forward(self, x: Tensor) -> Tensor:
        """Return the student's prediction: (N, T, C) -> (N, T, D)."""
        return self.normalise(x) if self.proj is None else self.proj(x)

    def normalise(self, x: Tensor) -> Tensor:
        """Return the teacher's normalised frames: (N, T, D) -> (N, T, D)."""
        return (x - self.mean) / self.std


@dataclass(frozen=True)
class TargetPair:
    """A student's prediction and the teacher's embeddings that it should match.

    Attributes:
      name:       prefix of the metrics in the logs.
      weight:     factor of all losses of the pair.
      prediction: (N, T, D) float.
      target:     (N, T, D) float.
      mask:       (N, T) bool, True where the frames are not compared.
    """

    name: str
    weight: float
    prediction: Tensor
    target: Tensor
    mask: Tensor


def regress(
    pairs: Iterable[TargetPair],
    losses: Mapping[str, float],
    lens: Tensor,
    has_target: Tensor,
    scale: float = 1.0,
) -> TermOutput:
    """Return the weighted sum of the losses of all pairs.

    The extras are "<pair>_<loss>", without weights.

    Args:
      losses:     frame loss -> weight.
      lens:       (N,) int64, student frames of 40 ms that the term compares.
      has_target: (N,) bool, whether the utterance has a target in any pair.
      scale:      factor of the sum.
    """
    total = torch.zeros((), device=lens.device)
    extras: dict[str, tuple[Tensor, int]] = {}
    suspects: set[int] = set()
    for pair in pairs:
        for kind, weight in losses.items():
            value, frames = sum_frame_loss(
                kind, pair.prediction, pair.target, pair.mask
            )
            total = total + pair.weight * weight * value
            extras[f"{pair.name}_{kind}"] = (value.detach(), frames)
        if not torch.isfinite(total.detach()):
            finite = torch.isfinite(pair.prediction.detach())
            finite &= torch.isfinite(pair.target)
            bad = ~finite.all(dim=2) & ~pair.mask
            suspects.update(bad.any(dim=1).nonzero().flatten().tolist())
    return TermOutput(
        total * scale,
        int((lens * has_target).sum()),
        extras,
        tuple(sorted(suspects)),
        list_skipped_targets(has_target, lens),
    )


def select_losses(option: str, losses: Mapping[str, float]) -> dict[str, float]:
    """Return the frame losses with a weight other than 0.

    Args:
      option: name of the option, for the error message.
    Raises:
      ValueError: if a loss is unknown.
    """
    unknown = sorted(set(losses) - set(FRAME_LOSSES))
    if unknown:
        raise ValueError(
            f"{option}: unknown loss {unknown}. Available: {', '.join(FRAME_LOSSES)}"
        )
    return {kind: weight for kind, weight in losses.items() if weight != 0}
