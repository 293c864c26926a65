"""Stateless predictor: the next token from a few previous ones."""

from torch import Tensor, nn
from torch.nn import functional as F

from icefall_kd import BLANK_ID
from icefall_kd.zipformer.regularisers import Balancer

NO_TOKEN = -1  # in the place of a token: its embedding is zero


class Decoder(nn.Module):
    """Embedding of the last ``context_size`` tokens through a grouped convolution.

    Source: Ghodsi et al., RNN-transducer with stateless prediction network, 2020,
    ICASSP; the convolution over several tokens as in k2's recipes.
    State-dict names: ``embedding``, ``conv`` (absent when ``context_size`` is 1).

    Attributes:
      context_size: number of previous tokens that the next one depends on.
      blank_id: id of the blank, which also stands for the start of an utterance.
    """

    def __init__(
        self,
        vocab_size: int,
        decoder_dim: int,
        context_size: int = 2,
        blank_id: int = BLANK_ID,
    ) -> None:
        super().__init__()
        if context_size < 1:
            raise ValueError(f"context_size must be at least 1, got {context_size}")
        if decoder_dim % 4 != 0:
            raise ValueError(f"decoder_dim must be a multiple of 4, got {decoder_dim}")
        self.vocab_size = vocab_size
        self.context_size = context_size
        self.blank_id = blank_id
        self.embedding = nn.Embedding(vocab_size, decoder_dim)
        # Keep the magnitudes from drifting, which averaged models suffer from.
        self.balancer = _magnitude_balancer()
        if context_size > 1:
            self.conv = nn.Conv1d(
                decoder_dim,
                decoder_dim,
                kernel_size=context_size,
                groups=decoder_dim // 4,
                bias=False,
            )
            self.balancer2 = _magnitude_balancer()

    def forward(self, y: Tensor, need_pad: bool = True) -> Tensor:
        """Embed each position together with the tokens before it.

        Args:
          y: (N, U) int64 token ids; a negative id means "no token here" and has a
            zero embedding (a hypothesis starts with such ids).
          need_pad: True in training, where position u sees ids u-context_size+1..u
            and nothing stands before the first.  False in decoding, where U must
            be ``context_size`` and one position comes out.
        Returns:
          (N, U, D) float, or (N, 1, D) when ``need_pad`` is False.
        """
        x = self.embedding(y.clamp(min=0)) * (y >= 0).unsqueeze(-1)
        x = self.balancer(x)
        if self.context_size == 1:
            return x
        x = x.transpose(1, 2)  # (N, U, D) -> (N, D, U)
        if need_pad:
            x = F.pad(x, (self.context_size - 1, 0))
        return self.balancer2(F.relu(self.conv(x)).transpose(1, 2))


def _magnitude_balancer() -> Balancer:
    return Balancer(
        min_positive=0.0,
        max_positive=1.0,
        min_abs=0.5,
        max_abs=1.0,
        prob=0.05,
    )
