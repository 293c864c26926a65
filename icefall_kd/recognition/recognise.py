"""A set of cuts through a PyTorch model, in batches."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Optional, TypeVar

import torch
from lhotse.cut import Cut
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.cpu import release_freed_memory
from icefall_kd.core.files import Pathlike
from icefall_kd.data.cuts import load_blocks, transcript
from icefall_kd.data.tokens import Tokenizer, UnknownLetters
from icefall_kd.decoding import DecodeOptions, Hypothesis, decode
from icefall_kd.decoding.streaming import decode_streaming, pad_tail
from icefall_kd.fields.codecs import Codec
from icefall_kd.recognition.long_audio import Window, cut_windows
from icefall_kd.recognition.options import Chunking, result_suffix
from icefall_kd.recognition.scoring import Recognition
from icefall_kd.transducer.checkpoint import check_head


def load_recogniser(
    checkpoint: Pathlike, head: str, device: str = "cpu"
) -> tuple[nn.Module, Tokenizer, dict[str, Any]]:
    """Return a model in eval mode that can recognise by ``head``, its tokenizer, and
    the info of its checkpoint.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      ValueError: if it is damaged, saw no text, or its head is not there or untrained.
    """
    from icefall_kd.transducer.checkpoint import load_model

    model, tokenizer, info = load_model(checkpoint, device)
    if tokenizer is None:
        raise ValueError(f"{checkpoint}: saw no text in training, knows no words")
    check_head(model, head, info, str(checkpoint))
    return model, tokenizer, info


def reference_words(cut: Cut) -> list[str]:
    """Return the words of a cut's transcript, none when it has no supervision."""
    return transcript(cut).split()


Timed = TypeVar("Timed")  # has a ``duration`` in s


def batches(cuts: Iterable[Timed], max_duration: float) -> Iterator[list[Timed]]:
    """Group cuts in their order; padded to the longest, a group stays under
    ``max_duration`` seconds unless one cut alone is longer."""
    group: list[Timed] = []
    longest = 0.0
    for cut in cuts:
        longest = max(longest, cut.duration)
        if group and longest * (len(group) + 1) > max_duration:
            yield group
            group, longest = [], cut.duration
        group.append(cut)
    if group:
        yield group


@torch.no_grad()
def encode_full_context(
    model: nn.Module, features: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return encoder_out (N, T, D) and lens (N,) of N whole utterances.

    Args:
      model: ``AsrModel`` in eval mode, causal or not.
      features: N tensors (F_n, 80) float32, or what else its encoder reads; each has
        at least ``model.min_frames``.
    """
    model.encoder.set_chunk(-1, -1)
    x = pad_sequence(features, batch_first=True, padding_value=model.padding_value)
    lens = torch.tensor([f.size(0) for f in features], device=x.device)
    return model.forward_encoder(x, lens)


@torch.no_grad()
def decode_full_context(
    model: nn.Module, features: list[Tensor], options: DecodeOptions
) -> list[Hypothesis]:
    """Decode N whole utterances, each frame with all the others as its context.

    Args:
      model: ``AsrModel`` in eval mode, causal or not.
      features: N tensors (F_n, 80) float32, or what else its encoder reads; one with
        fewer frames than the encoder needs gives an empty hypothesis.
      options: see :class:`DecodeOptions`.
    """
    found = [Hypothesis() for _ in features]
    rows = [i for i, f in enumerate(features) if f.size(0) >= model.min_frames]
    if rows:
        encoder_out, lens = encode_full_context(model, [features[i] for i in rows])
        for i, hyp in zip(rows, decode(model, encoder_out, lens, options)):
            found[i] = hyp
    return found


def decode_waves(
    model: nn.Module,
    waves: list[Tensor],
    options: DecodeOptions,
    chunking: Optional[Chunking] = None,
) -> list[Hypothesis]:
    """Decode N waves (S_n,) together: streaming when ``chunking`` says how.

    One that is shorter than a window of the fbank is heard with silence behind it.
    """
    from icefall_kd.data.features import WINDOW, compute_fbank

    device = next(model.parameters()).device
    waves = [nn.functional.pad(w, (0, max(0, WINDOW - len(w)))) for w in waves]
    if chunking is None:
        return decode_full_context(model, compute_fbank(waves, device), options)
    waves = [pad_tail(wave, chunking.chunk_size) for wave in waves]
    return decode_streaming(
        model,
        compute_fbank(waves, device),
        chunking.chunk_size,
        chunking.left_context,
        options,
    )


@dataclass(frozen=True)
class _Part:
    """A window of a cut, the whole cut unless it is long."""

    cut: Cut
    window: Window

    @property
    def duration(self) -> float:
        return self.window.duration


def _cut_parts(cuts: Iterable[Cut], max_seconds: float) -> Iterator[_Part]:
    for cut in cuts:
        blocks = (block.numpy() for block in load_blocks(cut))
        for window in cut_windows(blocks, max_seconds):
            yield _Part(cut, window)


@torch.no_grad()
def field_inputs(
    model: nn.Module, cuts: Iterable[Cut], codecs: Mapping[str, Codec]
) -> list[Tensor]:
    """Return what a model over teachers' fields reads of each cut, (T, D) float32."""
    from lhotse import CutSet

    from icefall_kd.core.frames import move_to_device
    from icefall_kd.dataset.dataset import load_batch

    device = next(model.parameters()).device
    found = []
    for cut in cuts:
        batch = load_batch(CutSet.from_cuts([cut]), codecs, device)
        x, lens = model.inputs(move_to_device(batch, device))
        found.append(x[0, : int(lens[0])])
    return found


def recognise(
    model: nn.Module,
    cuts: Iterable[Cut],
    tokenizer,
    options: DecodeOptions,
    chunking: Optional[Chunking] = None,
    *,
    max_duration: float = 0.0,
    total: Optional[int] = None,
    codecs: Optional[Mapping[str, Codec]] = None,
) -> tuple[list[Recognition], float]:
    """Recognise a set; cuts longer than ``options.max_utterance`` in windows.

    Args:
      model: ``AsrModel`` in eval mode.
      cuts: 16 kHz mono, with transcripts.
      tokenizer: turns ids into text.
      options: see :class:`DecodeOptions`.
      chunking: None decodes with full context.
      max_duration: seconds of audio in a batch, padding included; 0 is a cut at a
        time: the padding of whole utterances moves their scores a little.
      total: number of cuts, for the progress bar.
      codecs: of the fields that the cuts carry, for a model that hears teachers.
    Returns:
      the recognitions in the order of ``cuts``, and the real-time factor: seconds of
      features, model and search a second of audio, reading not counted; of a model
      that hears teachers, without these.
    """
    recognitions: list[Recognition] = []
    seconds, audio = 0.0, 0.0
    whole = chunking is not None or bool(model.fields)
    parts = _cut_parts(cuts, math.inf if whole else options.max_utterance)
    letters = UnknownLetters(tokenizer)
    with tqdm(total=total, desc=result_suffix(options, chunking), unit="cut") as bar:
        for group in batches(parts, max_duration):
            waves = [torch.from_numpy(part.window.wave) for part in group]
            if model.fields:
                inputs = field_inputs(model, [p.cut for p in group], codecs or {})
            start = time.perf_counter()
            if model.fields:
                hyps = decode_full_context(model, inputs, options)
            else:
                hyps = decode_waves(model, waves, options, chunking)
            seconds += time.perf_counter() - start
            audio += sum(len(wave) for wave in waves) / SAMPLE_RATE
            for part, hyp in zip(group, hyps):
                if part.window.start == 0:  # the first of its cut
                    recognitions.append(
                        Recognition(part.cut.id, reference_words(part.cut), [])
                    )
                    letters.add(transcript(part.cut))
                    bar.update()
                pieces = [tokenizer.piece(token) for token in hyp.tokens]
                kept, times = part.window.place_tokens(pieces, hyp.timestamps)
                tokens = [hyp.tokens[i] for i in kept]
                recognitions[-1].hyp.extend(tokenizer.decode(tokens).split())
                spans = tokenizer.word_spans(tokens)
                recognitions[-1].frames.extend(times[last] for _, last in spans)
            if any(part.window.start > 0 for part in group):
                release_freed_memory()  # no two windows have one length
    letters.check("the transcripts", max_unknown=1.0)
    return recognitions, seconds / max(audio, 1e-9)
