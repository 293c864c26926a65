"""Recognise a set of cuts with a PyTorch model."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Optional, TypeVar

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from icefall_kd import SAMPLE_RATE
from icefall_kd.core.cpu import release_freed_memory
from icefall_kd.core.files import Pathlike
from icefall_kd.core.frames import move_to_device
from icefall_kd.data.cuts import get_transcript, load_blocks
from icefall_kd.data.features import WINDOW, compute_fbank
from icefall_kd.data.tokens import Tokenizer, UnknownLetters
from icefall_kd.dataset.dataset import load_batch
from icefall_kd.decoding import DecodeOptions, Hypothesis, decode
from icefall_kd.decoding.streaming import decode_streaming, pad_tail
from icefall_kd.fields.codecs import Codec
from icefall_kd.recognition.long_audio import Window, split_windows
from icefall_kd.recognition.options import Chunking, result_suffix
from icefall_kd.recognition.scoring import Recognition
from icefall_kd.transducer.checkpoint import check_head, load_model

HasDuration = TypeVar("HasDuration")  # with an attribute ``duration`` in s


def load_recogniser(
    checkpoint: Pathlike, head: str, device: str = "cpu"
) -> tuple[nn.Module, Tokenizer, dict[str, Any]]:
    """Return a model in eval mode, its tokenizer, and the info of its checkpoint.

    Args:
      checkpoint: file of bin.average or of a run.
      head: "transducer" or "ctc", the head to decode with.
    Raises:
      FileNotFoundError: if the checkpoint does not exist.
      ValueError: if the checkpoint is damaged, has no tokenizer, or its head is missing
        or untrained.
    """
    model, tokenizer, info = load_model(checkpoint, device)
    if tokenizer is None:
        raise ValueError(
            f"{checkpoint}: no tokenizer, because the model was trained without text; "
            "use a fine-tuned checkpoint"
        )
    check_head(model, head, info, str(checkpoint))
    return model, tokenizer, info


def reference_words(cut: Cut) -> list[str]:
    """Return the words of a cut's transcript; empty without supervision."""
    return get_transcript(cut).split()


def recognise(
    model: nn.Module,
    cuts: Iterable[Cut],
    tokenizer: Tokenizer,
    options: DecodeOptions,
    chunking: Optional[Chunking] = None,
    *,
    max_duration: float = 0.0,
    total: Optional[int] = None,
    codecs: Optional[Mapping[str, Codec]] = None,
) -> tuple[list[Recognition], float]:
    """Recognise a set; cuts longer than ``options.max_utterance`` are split.

    Args:
      model: ``AsrModel`` in eval mode.
      cuts: 16 kHz mono; a cut without a transcript has no reference words.
      tokenizer: tokenizer of the model.
      chunking: chunks of streaming; None decodes with full context.
      max_duration: maximum duration of a batch in s, padding included; 0 decodes one
        cut at a time, because padding changes the scores of complete utterances
        slightly.
      total: number of cuts, for the progress bar.
      codecs: codec of each field that the model reads.
    Returns:
      recognitions in the order of ``cuts``, and the real-time factor: seconds for
      features, model and search per second of audio, without reading the audio.  For a
      model that reads fields, the time of the teachers is not included.
    """
    recognitions: list[Recognition] = []
    seconds, audio = 0.0, 0.0
    is_split = chunking is None and not model.fields
    windows = _split_cuts(cuts, options.max_utterance if is_split else math.inf)
    letters = UnknownLetters(tokenizer)
    with tqdm(total=total, desc=result_suffix(options, chunking), unit="cut") as bar:
        for batch in group_by_duration(windows, max_duration):
            waves = [torch.from_numpy(item.window.wave) for item in batch]
            if model.fields:
                inputs = load_field_inputs(model, [i.cut for i in batch], codecs or {})
            start = time.perf_counter()
            if model.fields:
                hyps = decode_full_context(model, inputs, options)
            else:
                hyps = decode_waves(model, waves, options, chunking)
            seconds += time.perf_counter() - start
            audio += sum(len(wave) for wave in waves) / SAMPLE_RATE
            for item, hyp in zip(batch, hyps):
                if item.window.start == 0:  # first window of its cut
                    ref = reference_words(item.cut)
                    recognitions.append(Recognition(item.cut.id, ref, []))
                    letters.add(get_transcript(item.cut))
                    bar.update()
                pieces = [tokenizer.piece(token) for token in hyp.tokens]
                selected, times = item.window.select_tokens(pieces, hyp.timestamps)
                tokens = [hyp.tokens[i] for i in selected]
                recognitions[-1].hyp.extend(tokenizer.decode(tokens).split())
                spans = tokenizer.word_spans(tokens)
                recognitions[-1].frames.extend(times[last] for _, last in spans)
            if any(item.window.start > 0 for item in batch):
                release_freed_memory()  # windows have different lengths
    letters.check("the transcripts", max_unknown=1.0)
    return recognitions, seconds / max(audio, 1e-9)


def decode_waves(
    model: nn.Module,
    waves: list[Tensor],
    options: DecodeOptions,
    chunking: Optional[Chunking] = None,
) -> list[Hypothesis]:
    """Decode N waves (S_n,) in one batch, with full context or in chunks.

    Waves shorter than an fbank window are padded with zeros.
    """
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


@torch.no_grad()
def decode_full_context(
    model: nn.Module, features: list[Tensor], options: DecodeOptions
) -> list[Hypothesis]:
    """Decode N complete utterances with full context.

    Args:
      model: ``AsrModel`` in eval mode, causal or not.
      features: N tensors (F_n, 80) float32, or other inputs of the encoder; an input
        shorter than ``model.min_frames`` gives an empty hypothesis.
    """
    found = [Hypothesis() for _ in features]
    rows = [i for i, f in enumerate(features) if f.size(0) >= model.min_frames]
    if rows:
        encoder_out, lens = encode_full_context(model, [features[i] for i in rows])
        for i, hyp in zip(rows, decode(model, encoder_out, lens, options)):
            found[i] = hyp
    return found


@torch.no_grad()
def encode_full_context(
    model: nn.Module, features: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return encoder_out (N, T, D) and lens (N,) of N complete utterances.

    Args:
      model: ``AsrModel`` in eval mode, causal or not.
      features: N tensors (F_n, 80) float32, or other inputs of the encoder, each with
        at least ``model.min_frames``.
    """
    model.encoder.set_chunk(-1, -1)
    x = pad_sequence(features, batch_first=True, padding_value=model.padding_value)
    lens = torch.tensor([f.size(0) for f in features], device=x.device)
    return model.forward_encoder(x, lens)


@torch.no_grad()
def load_field_inputs(
    model: nn.Module, cuts: Iterable[Cut], codecs: Mapping[str, Codec]
) -> list[Tensor]:
    """Return the input (T, D) float32 of a model that reads fields, for each cut."""
    device = next(model.parameters()).device
    inputs = []
    for cut in cuts:
        batch = load_batch(CutSet.from_cuts([cut]), codecs, device)
        x, lens = model.get_inputs(move_to_device(batch, device))
        inputs.append(x[0, : int(lens[0])])
    return inputs


@dataclass(frozen=True)
class _CutWindow:
    """A window of a cut, which is the complete cut if the cut is short."""

    cut: Cut
    window: Window

    @property
    def duration(self) -> float:
        return self.window.duration


def _split_cuts(cuts: Iterable[Cut], max_seconds: float) -> Iterator[_CutWindow]:
    for cut in cuts:
        blocks = (block.numpy() for block in load_blocks(cut))
        for window in split_windows(blocks, max_seconds):
            yield _CutWindow(cut, window)


def group_by_duration(
    items: Iterable[HasDuration], max_duration: float
) -> Iterator[list[HasDuration]]:
    """Yield groups of consecutive items.

    The padded duration of a group is at most ``max_duration`` seconds, except if one
    item alone is longer.
    """
    group: list[HasDuration] = []
    longest = 0.0
    for item in items:
        longest = max(longest, item.duration)
        if group and longest * (len(group) + 1) > max_duration:
            yield group
            group, longest = [], item.duration
        group.append(item)
    if group:
        yield group
