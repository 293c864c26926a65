"""Joiner: combines encoder and predictor into unnormalised token scores."""

import torch
from torch import Tensor, nn


def small_linear(in_dim: int, out_dim: int, scale: float = 0.25) -> nn.Linear:
    """Return a linear layer that starts with weights ``scale`` times the usual.

    The layers in front of the two losses start small, so that the first batches
    see nearly uniform token scores; biases are uniform in +-0.1 * ``scale``.
    """
    layer = nn.Linear(in_dim, out_dim)
    with torch.no_grad():
        layer.weight.mul_(scale)
        layer.bias.uniform_(-0.1 * scale, 0.1 * scale)
    return layer


class Joiner(nn.Module):
    """Additive joiner: ``output_linear(tanh(project(enc) + project(dec)))``.

    State-dict names: ``encoder_proj``, ``decoder_proj``, ``output_linear``.
    """

    def __init__(
        self, encoder_dim: int, decoder_dim: int, joiner_dim: int, vocab_size: int
    ) -> None:
        super().__init__()
        self.encoder_proj = small_linear(encoder_dim, joiner_dim)
        self.decoder_proj = small_linear(decoder_dim, joiner_dim)
        self.output_linear = nn.Linear(joiner_dim, vocab_size)

    def forward(
        self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = True
    ) -> Tensor:
        """Score every token for pairs of encoder and predictor frames.

        Args:
          encoder_out: (..., C) float, or (..., joiner_dim) if already projected.
          decoder_out: (..., D) float, or (..., joiner_dim) if already projected; its
            leading axes broadcast against those of ``encoder_out``.
          project_input: False when both were projected before, which is cheaper
            when one frame meets many labels.
        Returns:
          (..., V) float, logits.
        Raises:
          ValueError: if the two inputs differ in their number of axes.
        """
        if encoder_out.dim() != decoder_out.dim():
            raise ValueError(
                "encoder_out and decoder_out need the same number of axes, got "
                f"{tuple(encoder_out.shape)} and {tuple(decoder_out.shape)}"
            )
        if project_input:
            encoder_out = self.encoder_proj(encoder_out)
            decoder_out = self.decoder_proj(decoder_out)
        return self.output_linear(torch.tanh(encoder_out + decoder_out))
