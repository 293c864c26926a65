"""Compare the tokens of PyTorch, ONNX Runtime and sherpa-onnx.

With the same features, the engines must return the same tokens in the same frames.  A
tie is an exception: the two best scores are equal except for rounding, so the engines
may choose either.

With the same audio, the features of Lhotse and sherpa-onnx differ in the last digits.
This may flip a decision of greedy search.  A flip is explained if the other features
change the difference of the two scores by at least their margin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor, nn

from icefall_kd import BLANK_ID, ENCODER_SHIFT
from icefall_kd.data.features import compute_fbank
from icefall_kd.decoding import DecodeOptions, Hypothesis, get_search_class
from icefall_kd.decoding.beam_search import GreedySearch
from icefall_kd.decoding.ctc_search import CtcGreedySearch
from icefall_kd.decoding.streaming import decode_streaming, encode_chunks, pad_tail
from icefall_kd.export.files import ModelFiles
from icefall_kd.export.ort import OrtHypothesis, open_model
from icefall_kd.export.sherpa import SherpaRecogniser, sherpa_features
from icefall_kd.recognition.options import Chunking
from icefall_kd.recognition.recognise import decode_full_context

# Maximum difference of two fbank values (natural log) that counts as rounding.  float32
# gives a few thousandths in the quietest bins of quiet frames.
FEATURE_TOLERANCE = 0.01
# Maximum margin of a tie, in logits.  The order of float32 sums changes about a tenth.
SCORE_TOLERANCE = 5e-5


@dataclass(frozen=True)
class Difference:
    """A prompt for which two engines with the same features return different tokens.

    Attributes:
      engines: names of the engines.
      frame: first different frame (40 ms).
      margin: difference of the two best logits in ONNX Runtime where the paths diverge.
      tokens: tokens of each engine.
    """

    cut_id: str
    engines: str
    frame: int
    margin: float
    tokens: tuple[list[int], list[int]]

    @property
    def is_tie(self) -> bool:
        """Whether rounding explains the difference."""
        return self.margin <= SCORE_TOLERANCE


@dataclass(frozen=True)
class FeatureFlip:
    """A prompt for which Lhotse's and sherpa-onnx's features give different tokens.

    Attributes:
      frame, time: first different decision (40 ms frames, s); None if all decisions of
        PyTorch are equal.
      symbols: best symbols of this frame with the features of Lhotse and sherpa-onnx.
      margin: difference of the two symbols' scores with the features of Lhotse.
      shift: decrease of this difference with the features of sherpa-onnx.
      feature_difference: maximum difference of two fbank values of the prompt.
    """

    cut_id: str
    frame: Optional[int]
    time: Optional[float]
    symbols: tuple[int, int]
    margin: float
    shift: float
    feature_difference: float

    @property
    def is_explained(self) -> bool:
        """Whether the features explain the flip."""
        return (
            self.frame is not None
            and self.margin <= self.shift
            and self.feature_difference <= FEATURE_TOLERANCE
        )


@dataclass
class Comparison:
    """Result of :func:`compare_engines` for a set of prompts.

    Attributes:
      prompts, frames, tokens: numbers of prompts, of encoder output frames and of
        recognised tokens.
      smallest_margin: smallest difference of the two best logits of a frame.
      feature_difference: maximum difference of two fbank values.
      differences: different tokens with the same features.
      flips: different tokens with the same audio.
    """

    prompts: int = 0
    frames: int = 0
    tokens: int = 0
    smallest_margin: float = float("inf")
    feature_difference: float = 0.0
    differences: list[Difference] = field(default_factory=list)
    flips: list[FeatureFlip] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the engines match, except for ties and explained flips."""
        ties = all(d.is_tie for d in self.differences)
        return ties and all(f.is_explained for f in self.flips)

    def as_dict(self) -> dict[str, Any]:
        """Return the entry "check" of export.json."""
        flips = [{**asdict(f), "explained": f.is_explained} for f in self.flips]
        differences = [{**asdict(d), "tie": d.is_tie} for d in self.differences]
        return {
            **asdict(self),
            "differences": differences,
            "flips": flips,
            "ok": self.ok,
        }

    @property
    def verdict(self) -> str:
        """The word match, with exceptions and their numbers, or MISMATCH."""
        wrong = {d.cut_id for d in self.differences if not d.is_tie}
        wrong |= {f.cut_id for f in self.flips if not f.is_explained}
        if wrong:
            return f"MISMATCH on {len(wrong)} of {self.prompts} prompts"
        if not self.tokens:
            return "match, but no token was recognised; train the model longer"
        reasons = {"ties": len(self.differences), "explained flips": len(self.flips)}
        found = [f"{reason} ({n})" for reason, n in reasons.items() if n]
        return f"match except for {', '.join(found)}" if found else "match"

    def lines(self) -> list[str]:
        """Return a line with the verdict, and a line for each prompt that differs."""
        out = [
            f"PyTorch, ONNX Runtime and sherpa-onnx: {self.verdict} "
            f"({self.prompts} prompts, {self.tokens} tokens in {self.frames} frames; "
            f"maximum feature difference {self.feature_difference:.1e}, smallest "
            f"margin {self.smallest_margin:.1e})"
        ]
        out += [
            f"  {d.cut_id}: {d.engines} differ from frame {d.frame} on, margin "
            f"{d.margin:.1e}: {d.tokens[0]} and {d.tokens[1]}"
            + ("; a tie" if d.is_tie else "")
            for d in self.differences
        ]
        out += [
            f"  {f.cut_id}: frame {f.frame} ({f.time} s) flips from {f.symbols[0]} to "
            f"{f.symbols[1]}: margin {f.margin:.1e}, moved by {f.shift:.1e}"
            + ("" if f.is_explained else "; NOT EXPLAINED")
            for f in self.flips
        ]
        return out


def compare_engines(
    model: nn.Module,
    files: ModelFiles,
    waves: Mapping[str, np.ndarray],
    options: DecodeOptions,
) -> Comparison:
    """Decode each wave with three engines, and in PyTorch with both kinds of features.

    Args:
      model: PyTorch ``AsrModel`` on the CPU, in eval mode.
      files: float32 files exported from ``model``.
      waves: id -> (S,) float32 in [-1, 1], without tail padding.
      options: greedy search over the head of the files.
    """
    chunking = files.chunking
    padded = [torch.from_numpy(w) for w in waves.values()]
    if chunking:
        padded = [pad_tail(w, chunking.chunk_size) for w in padded]
    lhotse_fbank = compute_fbank(padded)
    sherpa_fbank = [torch.from_numpy(sherpa_features(w.numpy())) for w in padded]
    ort = open_model(files, options)
    sherpa = SherpaRecogniser(files, options)
    hypotheses = zip(
        waves,
        decode_features(model, lhotse_fbank, options, chunking),
        decode_features(model, sherpa_fbank, options, chunking),
        [ort.decode(f.numpy()) for f in sherpa_fbank],
        _decode_sherpa(sherpa, list(waves.values())),
    )
    result = Comparison(prompts=len(waves))
    for i, (cut_id, lhotse_hyp, torch_hyp, ort_hyp, sherpa_hyp) in enumerate(
        hypotheses
    ):
        distance = _feature_difference(lhotse_fbank[i], sherpa_fbank[i])
        result.feature_difference = max(result.feature_difference, distance)
        margin = float(ort_hyp.margins.min(initial=np.inf))
        result.smallest_margin = min(result.smallest_margin, margin)
        result.frames += len(ort_hyp.margins)
        result.tokens += len(sherpa_hyp.tokens)
        for engine, ours, hyp in (
            ("ONNX Runtime", torch_hyp, ort_hyp),
            ("sherpa-onnx", sherpa.map_byte_tokens(torch_hyp), sherpa_hyp),
        ):
            frame = first_difference(ours, hyp)
            if frame is not None:
                result.differences.append(
                    Difference(
                        cut_id,
                        f"PyTorch and {engine}",
                        frame,
                        decision_margin(ort_hyp, frame, files.head),
                        (ours.tokens, hyp.tokens),
                    )
                )
        lhotse_hyp = sherpa.map_byte_tokens(lhotse_hyp)
        if first_difference(lhotse_hyp, sherpa_hyp) is not None:
            logits = tuple(
                greedy_logits(model, fbank[i], options, chunking)
                for fbank in (lhotse_fbank, sherpa_fbank)
            )
            result.flips.append(find_flip(cut_id, logits, options.unk_id, distance))
    return result


@torch.no_grad()
def decode_features(
    model: nn.Module,
    features: Sequence[Tensor],
    options: DecodeOptions,
    chunking: Optional[Chunking],
) -> list[Hypothesis]:
    """Decode N fbank tensors (F_n, 80) with PyTorch.

    Full context decodes one utterance at a time, because padding changes the last
    frames of the front end.  Chunks need no padding, so streams form one batch.
    """
    if chunking is None:
        return [decode_full_context(model, [f], options)[0] for f in features]
    return decode_streaming(
        model, features, chunking.chunk_size, chunking.left_context, options
    )


def _decode_sherpa(
    sherpa: SherpaRecogniser, waves: list[np.ndarray]
) -> list[Hypothesis]:
    """Decode waves with sherpa-onnx; full context decodes one utterance at a time."""
    if sherpa.chunking:
        return sherpa.decode(waves)
    return [sherpa.decode([wave])[0] for wave in waves]


def _feature_difference(a: Tensor, b: Tensor) -> float:
    """Return the maximum difference of two fbank tensors, inf for different lengths."""
    return float((a - b).abs().max()) if a.shape == b.shape else float("inf")


def first_difference(a: Hypothesis, b: Hypothesis) -> Optional[int]:
    """Return the first frame in which two hypotheses differ, or None."""
    events = [dict(zip(h.timestamps, h.tokens)) for h in (a, b)]
    frames = sorted(set(events[0]) | set(events[1]))
    return next((t for t in frames if events[0].get(t) != events[1].get(t)), None)


def decision_margin(hyp: OrtHypothesis, frame: int, head: str) -> float:
    """Return the margin of the decision that caused a difference at ``frame``.

    A transducer decides on a token in its frame.  In CTC, the smallest margin since the
    previous token counts, because any of these frames may have ended that token.
    """
    if head == "transducer":
        return float(hyp.margins[frame])
    before = max((t for t in hyp.timestamps if t < frame), default=-1)
    return float(hyp.margins[before + 1 : frame + 1].min())


class _TransducerRecorder(GreedySearch):
    """Greedy search that stores the logits of each frame."""

    def __init__(self, *arguments: Any):
        self.logits: list[Tensor] = []
        super().__init__(*arguments)

    def _compute_logits(self, encoder_frame: Tensor, predicted: Tensor) -> Tensor:
        logits = super()._compute_logits(encoder_frame, predicted)
        self.logits.append(logits[0])
        return logits


class _CtcRecorder(CtcGreedySearch):
    """CTC greedy search that stores the log-probabilities of each frame."""

    def __init__(self, *arguments: Any):
        self.logits: list[Tensor] = []
        super().__init__(*arguments)

    def _step(self, log_probs: Tensor) -> None:
        self.logits.append(log_probs[0])
        super()._step(log_probs)


RECORDERS = {r.head: r for r in (_TransducerRecorder, _CtcRecorder)}


@torch.no_grad()
def greedy_logits(
    model: nn.Module,
    features: Tensor,
    options: DecodeOptions,
    chunking: Optional[Chunking],
) -> np.ndarray:
    """Return the logits (T, V) float32 of greedy search for fbank (F, 80)."""
    search = RECORDERS[get_search_class(options.method).head](model, 1, options)
    if chunking:
        chunks = encode_chunks(
            model, [features], chunking.chunk_size, chunking.left_context
        )
    else:
        model.encoder.set_chunk(-1, -1)
        lens = torch.tensor([features.size(0)])
        chunks = [model.forward_encoder(features[None], lens)]
    for encoder_out, lens in chunks:
        search.advance(encoder_out, lens)
    return torch.stack(search.logits).numpy()


def find_flip(
    cut_id: str,
    logits: tuple[np.ndarray, np.ndarray],
    unk_id: Optional[int],
    feature_difference: float,
) -> FeatureFlip:
    """Return the first decision of greedy search that depends on the features.

    Args:
      logits: (T, V) with the features of Lhotse and of sherpa-onnx; their contexts are
        equal up to the first flip.
      unk_id: id of ``<unk>``, which counts as a blank.
      feature_difference: maximum difference of two fbank values.
    """
    blanks = (BLANK_ID, unk_id)
    for t, (a, b) in enumerate(zip(*logits)):
        i, j = int(a.argmax()), int(b.argmax())
        if i == j or (i in blanks and j in blanks):
            continue
        margin = float(a[i] - a[j])
        shift = float((a[i] - a[j]) - (b[i] - b[j]))
        time = round(t * ENCODER_SHIFT, 2)
        return FeatureFlip(cut_id, t, time, (i, j), margin, shift, feature_difference)
    nan = float("nan")
    return FeatureFlip(cut_id, None, None, (-1, -1), nan, nan, feature_difference)
