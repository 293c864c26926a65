"""A recogniser over cached embeddings instead of audio.

`FieldModel` is a small recurrent encoder with CTC head, predictor and joiner.  It is
trained on transcripts and on fields of one or more foundation models.  Its token
distributions have the student's vocabulary and frame rate, see
:mod:`icefall_kd.teachers.vocab_teacher`.  `ModelEnsemble` averages several models.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from icefall_kd import BLANK_ID
from icefall_kd.core.config import FieldEncoderConfig
from icefall_kd.core.frames import align_frames, make_pad_mask
from icefall_kd.transducer.model import AsrModel
from icefall_kd.transducer.path import score_path
from icefall_kd.zipformer.cpu.blocks import disable_cpu_autocast
from icefall_kd.zipformer.subsampling import encoder_output_lens


class FieldEncoder(nn.Module):
    """Bidirectional GRU layers over normalised embeddings at 25 Hz.

    Attributes:
      causal:     always False, because the layers are bidirectional.
      last_chunk: (chunk size, left context), always full context.
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
        """Set the statistics that normalise the input.

        Args:
          mean, std: for each field, the values of its dimensions.
        """
        self.mean.copy_(torch.cat([torch.tensor(m) for m in mean]))
        # Constant dimensions must not cause a division by zero.
        self.std.copy_(torch.cat([torch.tensor(s) for s in std]).clamp(min=1e-5))

    def set_chunk(self, chunk_size: int, left_context: int) -> None:
        """Check that the chunk is full context; the interface is Zipformer2's.

        Raises:
          ValueError: if ``chunk_size`` is not -1.
        """
        if chunk_size != -1:
            raise ValueError(
                f"chunk size {chunk_size}: an encoder of fields cannot stream; use -1"
            )

    def forward(self, x: Tensor, lens: Tensor) -> Tensor:
        """Encode embeddings.

        Args:
          x:    (N, T, sum of dims) float32, frames of 40 ms.
          lens: (N,) int64, valid frames.
        Returns:
          (N, T, C) float, zero at padding.
        """
        x = (x - self.mean) / self.std
        if self.training:
            x = x * draw_time_mask(
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


def draw_time_mask(lens: Tensor, num_frames: int, prob: float, length: int) -> Tensor:
    """Return a random mask, 0 at masked frames and 1 elsewhere.

    Args:
      lens:       (N,) int64, valid frames.
      num_frames: T.
      prob:       share of an utterance's frames to mask, if no masks overlap.
      length:     frames of a mask.
    Returns:
      (N, T) float32.
    """
    mask = torch.ones(len(lens), num_frames, device=lens.device)
    for row, n in enumerate(lens.tolist()):
        for _ in range(math.ceil(prob * n / length) if prob > 0 else 0):
            start = int(torch.randint(max(1, n - length + 1), ()))
            mask[row, start : start + length] = 0.0
    return mask


class FieldModel(AsrModel):
    """A transducer with CTC head whose encoder reads fields.

    Attributes:
      fields: names of the fields that a batch must contain.
    """

    min_frames = 1
    padding_value = 0.0

    def __init__(self, config: FieldEncoderConfig, **parts: Any) -> None:
        super().__init__(
            encoder_embed=nn.Identity(), encoder=FieldEncoder(config), **parts
        )
        self.fields = tuple(config.fields)

    def get_inputs(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the fields, aligned to the student's frames and concatenated.

        Args:
          batch: with "fields" and "feature_lens", see ``icefall_kd.dataset.dataset``.
        Returns:
          (N, T, sum of dims) float32 and its lengths (N,) int64, frames of 40 ms.
        """
        lens = encoder_output_lens(batch["feature_lens"]).clamp(min=1)
        aligned: list[Tensor] = []
        for name in self.fields:
            field = batch["fields"][name]
            aligned.append(
                align_frames(field["x"], field["lens"], field["frame_shift"], lens)
            )
        x = torch.cat(aligned, dim=2)
        return x, lens.to(x.device)

    def forward_encoder(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the result of :meth:`get_inputs`.

        Returns:
          encoder_out (N, T, C) float and its lengths (N,) int64, frames of 40 ms.
        """
        # torch 1.13 has no layer normalisation in bfloat16 on a CPU.
        with disable_cpu_autocast(x):
            return self.encoder(x, x_lens), x_lens


Encoded = Sequence[Tensor]  # encoder output (N, T, C) of each model


class ModelEnsemble:
    """Average the distributions of one or more transducers with one vocabulary.

    All models have the student's frame times.  CTC heads may still put a token in
    different frames, which flattens their mean (`score_ctc`).  At the nodes of a common
    path the distributions correspond (`score_lattice`, `score_path`).

    Source: mean of an ensemble at the nodes of one path, essence knowledge
    distillation, 2019, arXiv:1906.10834.

    Attributes:
      fields: names of the fields that a batch must contain.
    """

    def __init__(self, models: Sequence[AsrModel]) -> None:
        self.models = list(models)
        self.fields = tuple(dict.fromkeys(f for m in models for f in m.fields))

    def encode(self, batch: Mapping[str, Any]) -> tuple[list[Tensor], Tensor]:
        """Return the encoder output (N, T, C) of each model, and the lengths (N,)."""
        outputs = [
            model.forward_encoder(*model.get_inputs(batch)) for model in self.models
        ]
        return [x for x, _ in outputs], outputs[0][1]

    def score_ctc(self, encoded: Encoded) -> Tensor:
        """Return the mean of the CTC heads' distributions, (N, T, V), as logarithms."""
        return _average([m.ctc_output(x) for m, x in zip(self.models, encoded)])

    def score_lattice(self, encoded: Encoded, tokens: Sequence[int]) -> Tensor:
        """Return the mean of the joiners' distributions at every node (t, u).

        Args:
          encoded: of one utterance, (1, T, C) of each model.
          tokens:  the U tokens of the utterance.
        Returns:
          (T, U + 1, V) log-probabilities.
        """
        labels = torch.tensor([[BLANK_ID, *tokens]], device=encoded[0].device)
        log_probs = []
        for model, x in zip(self.models, encoded):
            decoder_out = model.decoder(labels)
            logits = model.joiner(x.unsqueeze(2), decoder_out.unsqueeze(1))
            log_probs.append(logits[0].log_softmax(-1))
        return _average(log_probs)

    def score_path(self, encoded: Encoded, emitted: Tensor) -> Tensor:
        """Return the mean of the joiners' distributions at the nodes of paths.

        Args:
          encoded: (N, T, C) of each model.
          emitted: (N, T) int64, token of each frame, 0 for the blank.
        Returns:
          (N, T, V) log-probabilities.
        """
        logits = [score_path(m, x, emitted)[0] for m, x in zip(self.models, encoded)]
        return _average([each.log_softmax(-1) for each in logits])


def _average(log_probs: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean probability; one input is unchanged."""
    return torch.stack(list(log_probs)).logsumexp(dim=0) - math.log(len(log_probs))
