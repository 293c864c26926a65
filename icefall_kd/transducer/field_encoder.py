"""A recogniser over what teachers said: their embeddings in the place of audio.

A foundation model knows no word of our vocabulary.  A small recurrent encoder with the
usual CTC head, predictor and joiner, trained on the cached embeddings of one or more of
them and the transcripts, makes a teacher that does: one whose distributions a student
can be compared with, frame by frame, at the student's own rate.

Adapters that speak as one: the mean of their distributions, node by node.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from icefall_kd import BLANK_ID
from icefall_kd.core.config import FieldEncoderConfig
from icefall_kd.core.frames import make_pad_mask
from icefall_kd.transducer.model import AsrModel
from icefall_kd.transducer.path import score_path
from icefall_kd.zipformer.cpu.blocks import disable_cpu_autocast
from icefall_kd.zipformer.subsampling import conv2d_subsampling_lens


class FieldEncoder(nn.Module):
    """Bidirectional GRU layers over normalised embeddings of 25 Hz.

    Attributes:
      causal: False; it reads an utterance in both directions.
      last_chunk: chunk size and left context, full for the same reason.
    """

    causal = False
    last_chunk = (-1, -1)

    def __init__(self, config: FieldEncoderConfig) -> None:
        super().__init__()
        self.config = config
        size = sum(config.dims)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.in_proj = nn.Linear(size, config.dim)
        self.rnn = nn.ModuleList(
            nn.GRU(config.dim, config.dim // 2, batch_first=True, bidirectional=True)
            for _ in range(config.num_layers)
        )
        self.norms = nn.ModuleList(
            nn.LayerNorm(config.dim) for _ in range(config.num_layers + 1)
        )
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.dropout = nn.Dropout(config.dropout)

    def set_statistics(
        self, mean: Sequence[Sequence[float]], std: Sequence[Sequence[float]]
    ) -> None:
        """Take the mean and deviation of each field's dimensions over its set."""
        self.mean.copy_(torch.cat([torch.tensor(m) for m in mean]))
        # A dimension that never moves must not become a division by zero.
        self.std.copy_(torch.cat([torch.tensor(s) for s in std]).clamp(min=1e-5))

    def set_chunk(self, chunk_size: int, left_context: int) -> None:
        """Accept full context, the only one there is.

        Raises:
          ValueError: for any other.
        """
        if chunk_size != -1:
            raise ValueError("an encoder over teachers' embeddings cannot stream")

    def forward(self, x: Tensor, lens: Tensor) -> Tensor:
        """Encode embeddings.

        Args:
          x:    (N, T, sum of dims) float32, frames of 40 ms.
          lens: (N,) int64, valid frames.
        Returns:
          (N, T, C) float.
        """
        x = (x - self.mean) / self.std
        if self.training:
            x = x * hide_stretches(
                lens, x.size(1), self.config.mask_prob, self.config.mask_frames
            ).unsqueeze(-1)
        x = self.norms[0](self.in_proj(self.input_dropout(x)))
        for rnn, norm in zip(self.rnn, self.norms[1:]):
            packed = pack_padded_sequence(
                self.dropout(x), lens.cpu(), batch_first=True, enforce_sorted=False
            )
            out, _ = pad_packed_sequence(
                rnn(packed)[0], batch_first=True, total_length=x.size(1)
            )
            x = norm(x + out)
        return x * ~make_pad_mask(lens, x.size(1)).unsqueeze(-1)


def hide_stretches(lens: Tensor, num_frames: int, prob: float, length: int) -> Tensor:
    """Return (N, T) float of ones, with zeros in stretches that are drawn at random.

    Args:
      lens:   (N,) int64, valid frames.
      prob:   share of an utterance's frames that is hidden, where none overlap.
      length: frames of a stretch.
    """
    keep = torch.ones(len(lens), num_frames, device=lens.device)
    for row, n in enumerate(lens.tolist()):
        for _ in range(math.ceil(prob * n / length) if prob > 0 else 0):
            start = int(torch.randint(max(1, n - length + 1), ()))
            keep[row, start : start + length] = 0.0
    return keep


class FieldModel(AsrModel):
    """A transducer with CTC head over teachers' fields.

    Attributes:
      fields: that a batch must carry.
    """

    min_frames = 1
    padding_value = 0.0

    def __init__(self, config: FieldEncoderConfig, **parts: Any) -> None:
        super().__init__(
            encoder_embed=nn.Identity(), encoder=FieldEncoder(config), **parts
        )
        self.fields = tuple(config.fields)

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the teachers' frames at the times of a student's.

        Args:
          batch: with "fields" and "feature_lens", see ``icefall_kd.dataset.dataset``.
        Returns:
          (N, T, sum of dims) float32 and (N,) int64, frames of 40 ms.
        """
        from icefall_kd.core.frames import align_frames

        lens = conv2d_subsampling_lens(batch["feature_lens"])
        lens = torch.div(lens + 1, 2, rounding_mode="floor").clamp(min=1)
        aligned: list[Tensor] = []
        for name in self.fields:
            field = batch["fields"][name]
            aligned.append(
                align_frames(field["x"], field["lens"], field["frame_shift"], lens)
            )
        x = torch.cat(aligned, dim=2)
        return x, lens.to(x.device)

    def forward_encoder(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode what :meth:`inputs` returned; the lengths stay."""
        with disable_cpu_autocast(
            x
        ):  # torch 1.13 cannot normalise layers in bfloat16 there
            return self.encoder(x, x_lens), x_lens


Encoded = Sequence[Tensor]  # of each model (N, T, C)


class ModelEnsemble:
    """One or more recognisers over teachers' fields, of one vocabulary.

    Frames of CTC heads and nodes of transducers are the same for all of them, since all
    hear at the times of a student's frames.  Spikes of CTC heads need not fall into the
    same frames; on a path that all of them walk, nothing need be aligned.
    Source: an ensemble's mean at the nodes of one path, essence knowledge distillation,
    2019, arXiv:1906.10834.

    Attributes:
      fields: that a batch must carry.
    """

    def __init__(self, models: Sequence[FieldModel]) -> None:
        self.models = list(models)
        self.fields = tuple(dict.fromkeys(f for m in models for f in m.fields))

    def encode(self, batch: Mapping[str, Any]) -> tuple[list[Tensor], Tensor]:
        """Return what each model's encoder says of a batch, and the lengths (N,)."""
        heard = [model.forward_encoder(*model.inputs(batch)) for model in self.models]
        return [x for x, _ in heard], heard[0][1]

    def ctc(self, encoded: Encoded) -> Tensor:
        """Return the mean of the CTC heads, (N, T, V) log-probabilities."""
        return _mean([m.ctc_output(x) for m, x in zip(self.models, encoded)])

    def lattice(self, encoded: Encoded, tokens: Sequence[int]) -> Tensor:
        """Return the mean at every node of one utterance, (T, U + 1, V).

        Args:
          encoded: of the utterance, each (1, T, C).
          tokens:  its U tokens.
        """
        labels = torch.tensor([[BLANK_ID, *tokens]], device=encoded[0].device)
        found = []
        for model, x in zip(self.models, encoded):
            decoder_out = model.decoder(labels)
            logits = model.joiner(x.unsqueeze(2), decoder_out.unsqueeze(1))
            found.append(logits[0].log_softmax(-1))
        return _mean(found)

    def score_path(self, encoded: Encoded, emitted: Tensor) -> Tensor:
        """Return the mean at the nodes of paths, (N, T, V) log-probabilities.

        Args:
          emitted: (N, T) int64, token of each frame, 0 for the blank.
        """
        logits = [score_path(m, x, emitted)[0] for m, x in zip(self.models, encoded)]
        return _mean([each.log_softmax(-1) for each in logits])


def _mean(log_probs: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean probability; of one, itself to the bit."""
    return torch.stack(list(log_probs)).logsumexp(dim=0) - math.log(len(log_probs))
