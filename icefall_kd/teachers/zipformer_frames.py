"""What a Zipformer teacher hears behind an utterance, and when its frames are.

Padding.  What follows an utterance is heard a little: by the front end, by the last,
incomplete group of frames of a stack at a lower rate, and by the convolutions of a
causal model in full context, which know how far the end of their chunk is.  To keep the
output a function of the utterance alone, each one is followed by so much silence
(fbank of ln 1e-10, as in a batch of training) that more would change nothing.  For the
usual stacks that is 0.2 s behind the longest of a batch; for a causal model without
chunks its widest kernel more, 2.8 s, which a chunk size saves.

Time.  A frame of the encoder is centred later than a field's frames begin: with what
:mod:`icefall_kd.core.frames` says of the front end, frame j of a stack (50 Hz) at
20 j + 45 ms, frame i of the output (25 Hz) at 40 i + 55 ms; so the spans that they
stand for begin 35 ms after 20 j and 40 i ms.  A field's frame k stands for
k * shift .. (k + 1) * shift.  Frames of embeddings are therefore given out later by as
many as come nearest, two at 50 Hz and one at 25 Hz, which leaves them 5 ms early; the
first and the last frame are repeated where the utterance begins before them or goes on
after them.  So the centre of a student's frame i lies in the field's frame that holds
the teacher's frame i.  Distributions cannot be averaged over time and answer a student
frame by frame: of kind "ctc" the model's own frames are given, from the first on.

The one-best path of a transducer: the output "path" of a teacher.
"""

import math
from collections.abc import Sequence
from typing import Optional, Union

import torch
from torch import Tensor
from torch.nn import functional as F

from icefall_kd import LOG_EPS, NUM_MEL_BINS
from icefall_kd.core.frames import make_pad_mask, pack_path, pack_topk
from icefall_kd.data.features import WINDOW, compute_fbank
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.decoding import DecodeOptions, decode
from icefall_kd.teachers.protocol import TeacherOutput
from icefall_kd.transducer.denominator import fuse_bigram
from icefall_kd.transducer.field_encoder import Encoded, ModelEnsemble
from icefall_kd.transducer.path import best_path, previous_tokens
from icefall_kd.zipformer.encoder import Zipformer2
from icefall_kd.zipformer.subsampling import (
    CONVNEXT_CONTEXT,
    MIN_FRAMES,
    conv2d_subsampling_lens,
)

STACK_STEP = 320  # samples between two frames of a stack, 50 Hz
BEGIN = 560  # samples, 35 ms: where the span of a model's frame 0 begins


def fbank_and_silence(
    waves: Tensor,
    wave_lens: Tensor,
    encoder: Zipformer2,
    device: Union[str, torch.device],
) -> tuple[Tensor, Tensor]:
    """Return the fbank of a batch with silence behind it, and its valid frames.

    An utterance too short for the front end counts some of the silence as its own.

    Args:
      waves:     (N, S) float32, 16 kHz, in [-1, 1].
      wave_lens: (N,) int64, valid samples.
    Returns:
      (N, T, 80) float32 and (N,) int64, at least 9, on ``device``.
    """
    lens = wave_lens.tolist()
    own = [F.pad(w[:n], (0, max(0, WINDOW - n))) for w, n in zip(waves, lens)]
    features = compute_fbank(own, device)
    frames = [max(MIN_FRAMES, len(f)) for f in features]
    shape = (len(features), padded_frames(encoder, max(frames)), NUM_MEL_BINS)
    x = torch.full(shape, LOG_EPS, device=device)
    for row, f in zip(x, features):
        row[: len(f)] = f
    return x, torch.tensor(frames, device=device)


def padded_frames(encoder: Zipformer2, num_frames: int) -> int:
    """Return the fbank frames of a batch whose longest utterance has ``num_frames``.

    Silence reaches over the last groups of frames of all stacks, then the ConvNeXt
    layer's context; and to the end of the first chunk, or past the reach of a kernel
    at the end where all is one chunk.
    """
    factors = [*encoder.config.downsampling_factor, encoder.downsample_output.factor]
    frames = conv2d_subsampling_lens(num_frames)  # 50 Hz, as all below
    frames += math.lcm(*factors) - 1 + CONVNEXT_CONTEXT
    chunk_size, _ = encoder.get_chunk_info()
    if chunk_size > 0:
        frames = max(frames, chunk_size)
    elif encoder.causal:
        stacks = zip(
            encoder.config.cnn_module_kernel, encoder.config.downsampling_factor
        )
        frames += max((kernel + 1) * factor for kernel, factor in stacks)
    return 2 * frames + 7


def on_grid(x: Tensor, lens: Tensor, wave_lens: Tensor, step: int) -> TeacherOutput:
    """Bring the model's frames to those of a field; see the module's text.

    Args:
      x:         (N, T, W), the model's frames.
      lens:      (N,) int64, valid ones, 1 <= lens <= T.
      wave_lens: (N,) int64, samples.
      step:      samples between two frames.
    Returns:
      frames 0 .. ceil(samples / step) - 1 of each utterance.
    """
    out_lens = torch.div(wave_lens + step - 1, step, rounding_mode="floor")
    k = torch.arange(int(out_lens.max()), device=x.device).unsqueeze(0)
    source = (k - round(BEGIN / step)).clamp(min=0).minimum(lens.unsqueeze(1) - 1)
    y = x.float().gather(1, source.unsqueeze(2).expand(-1, -1, x.shape[2]))
    return TeacherOutput(y * (k < out_lens.unsqueeze(1)).unsqueeze(2), out_lens)


def own_frames(x: Tensor, lens: Tensor) -> TeacherOutput:
    """Give out the model's frames as they are.

    Args:
      x:    (N, T, W).
      lens: (N,) int64, valid ones, 1 <= lens <= T.
    """
    x = x[:, : int(lens.max())].float()
    padding = make_pad_mask(lens, x.shape[1])
    return TeacherOutput(x.masked_fill(padding.unsqueeze(-1), 0.0), lens)


# Output -> the head of the model that it comes from.
HEAD_OF = {"ctc": "ctc", "path": "transducer"}


class BestPaths:
    """Finds one-best paths, and the joiner's distributions on them.

    The path is the most probable one of the transcript; without a transcript that has
    a path, of what the first model recognises by beam search.

    Args:
      models:    one or more transducers of one vocabulary.
      tokenizer: of that vocabulary.
      topk:      tokens kept of each frame.
      beam:      hypotheses of the search.
      lm:        (V, V) log-probabilities of a bigram that is fused into the
                 distributions, not into the search; see
                 :func:`icefall_kd.transducer.denominator.fuse_bigram`.
      lm_scale:  of the bigram.
    """

    def __init__(
        self,
        models: ModelEnsemble,
        tokenizer: Tokenizer,
        topk: int,
        beam: int,
        lm: Optional[Tensor] = None,
        lm_scale: float = 0.0,
    ) -> None:
        self.models = models
        self.tokenizer = tokenizer
        self.topk = topk
        self.lm, self.lm_scale = lm, lm_scale
        self.search = DecodeOptions(
            "modified_beam_search", beam, unk_id=tokenizer.unk_id
        )

    def __call__(
        self, encoded: Encoded, lens: Tensor, texts: Sequence[str]
    ) -> TeacherOutput:
        """Return (N, T, 2 k + 2) float32, see :func:`icefall_kd.core.frames.pack_path`.

        Args:
          encoded: of each model (N, T, C) float32.
          lens:    (N,) int64, valid frames.
          texts:   N transcripts; one that is empty, or has more tokens than there are
                   frames, is not used.
        Raises:
          ValueError: for another number of transcripts.
        """
        if len(texts) != len(lens):
            raise ValueError(
                f"{len(texts)} transcripts for {len(lens)} utterances: give one of "
                'each, "" where there is none'
            )
        emitted = self._emitted(encoded, lens, texts)
        log_probs = self.models.score_path(encoded, emitted)
        if self.lm is not None:
            log_probs = fuse_bigram(
                log_probs, previous_tokens(emitted), self.lm, self.lm_scale
            )
        x = pack_path(emitted, pack_topk(log_probs, self.topk))
        mask = make_pad_mask(lens, x.size(1)).unsqueeze(-1)
        return TeacherOutput(x.masked_fill(mask, 0.0), lens)

    def _emitted(self, encoded: Encoded, lens: Tensor, texts: Sequence[str]) -> Tensor:
        """Return the tokens that the best paths emit, (N, T) int64, 0 for the blank."""
        emitted = lens.new_zeros(encoded[0].shape[:2])
        for n, (frames, text) in enumerate(zip(lens.tolist(), texts)):
            own = [x[n : n + 1, :frames] for x in encoded]
            tokens = self.tokenizer.encode(text) if text else []
            if not tokens or len(tokens) > frames:
                first = self.models.models[0]
                found = decode(first, own[0], lens[n : n + 1], self.search)
                tokens = found[0].tokens
            lattice = self.models.lattice(own, tokens)
            emitted[n, :frames] = best_path(lattice, tokens)
        return emitted
