"""Where two fbanks of one prompt lead greedy search to two decisions, and why.

lhotse's features differ from sherpa-onnx's in the last digits, so that a decision may
flip, but only at a frame whose two best scores are closer than the features move them.

Do PyTorch, ONNX Runtime and sherpa-onnx say the same?

On the same features they must, token for token and frame for frame; only two scores
that are equal but for rounding may come out in either order, and are listed as a tie.
From the audio, whose features are not quite the same, a decision may flip (see
``flips``).
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

# Largest difference of two fbank values, natural log, that counts as rounding: in the
# quietest bins of quiet frames float32 leaves a few thousandths.
FEATURE_TOLERANCE = 0.01


@dataclass(frozen=True)
class FeatureFlip:
    """A prompt whose tokens depend on whose fbank was read.

    Attributes:
      frame, time: where the first decision flips (40 ms frames, s); None if none does.
      symbols: the two candidates there: from lhotse's and from sherpa-onnx's features.
      margin: between them with lhotse's features.
      shift: by which the features move the two scores against each other.
      feature_difference: the largest difference of two fbank values of the prompt.
    """

    cut_id: str
    frame: Optional[int]
    time: Optional[float]
    symbols: tuple[int, int]
    margin: float
    shift: float
    feature_difference: float

    @property
    def explained(self) -> bool:
        """Whether the features alone account for it."""
        return (
            self.frame is not None
            and self.margin <= self.shift
            and self.feature_difference <= FEATURE_TOLERANCE
        )


class _TransducerRecorder(GreedySearch):
    """Greedy search that keeps the logits of every frame."""

    def __init__(self, *arguments: Any):
        self.logits: list[Tensor] = []
        super().__init__(*arguments)

    def _logits(self, encoder_frame: Tensor, predicted: Tensor) -> Tensor:
        logits = super()._logits(encoder_frame, predicted)
        self.logits.append(logits[0])
        return logits


class _CtcRecorder(CtcGreedySearch):
    """The same over the CTC head."""

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
    """Return the logits (T, V) float32 that greedy search saw of fbank (F, 80)."""
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
    """Find where greedy search decides otherwise with other features, and how closely.

    Args:
      logits: (T, V) each, of lhotse's and of sherpa-onnx's features.  Up to the first
        flip both were computed with the same context, so they can be compared there.
    """
    silent = (BLANK_ID, unk_id)
    for t, (a, b) in enumerate(zip(*logits)):
        i, j = int(a.argmax()), int(b.argmax())
        if i == j or (i in silent and j in silent):
            continue
        margin = float(a[i] - a[j])
        shift = float((a[i] - a[j]) - (b[i] - b[j]))
        time = round(t * ENCODER_SHIFT, 2)
        return FeatureFlip(cut_id, t, time, (i, j), margin, shift, feature_difference)
    nan = float("nan")
    return FeatureFlip(cut_id, None, None, (-1, -1), nan, nan, feature_difference)


SCORE_TOLERANCE = 5e-5  # logits; float32 sums in another order differ by a tenth of it


@dataclass(frozen=True)
class Difference:
    """A prompt on which two engines that read the same features disagree.

    Attributes:
      frame: the first that differs, 40 ms each.
      margin: between the two best logits where they part, by ONNX Runtime.
    """

    cut_id: str
    engines: str
    frame: int
    margin: float
    tokens: tuple[list[int], list[int]]

    @property
    def tie(self) -> bool:
        """Whether rounding alone accounts for it."""
        return self.margin <= SCORE_TOLERANCE


@dataclass
class Comparison:
    """Outcome of :func:`compare_engines` over a set of prompts."""

    prompts: int = 0
    frames: int = 0
    tokens: int = 0
    smallest_margin: float = float("inf")
    feature_difference: float = 0.0
    differences: list[Difference] = field(default_factory=list)
    flips: list[FeatureFlip] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        ties = all(d.tie for d in self.differences)
        return ties and all(f.explained for f in self.flips)

    def as_dict(self) -> dict:
        flips = [{**asdict(f), "explained": f.explained} for f in self.flips]
        differences = [{**asdict(d), "tie": d.tie} for d in self.differences]
        return {
            **asdict(self),
            "differences": differences,
            "flips": flips,
            "ok": self.ok,
        }

    @property
    def verdict(self) -> str:
        """The outcome in a few words."""
        wrong = {d.cut_id for d in self.differences if not d.tie}
        wrong |= {f.cut_id for f in self.flips if not f.explained}
        if wrong:
            return f"MISMATCH on {len(wrong)} of {self.prompts} prompts"
        if not self.tokens:
            return "match, but no token was recognised, so it shows little: train more"
        reasons = {"ties": len(self.differences), "explained flips": len(self.flips)}
        found = [f"{reason} ({n})" for reason, n in reasons.items() if n]
        return f"match but for {', '.join(found)}" if found else "match"

    def lines(self) -> list[str]:
        """Return the verdict in one line and a line for each prompt that differs."""
        out = [
            f"PyTorch, ONNX Runtime and sherpa-onnx: {self.verdict} "
            f"({self.prompts} prompts, {self.tokens} tokens in {self.frames} frames; "
            f"features differ by at most {self.feature_difference:.1e}, the closest "
            f"decision is {self.smallest_margin:.1e})"
        ]
        out += [
            f"  {d.cut_id}: {d.engines} differ from frame {d.frame} on, margin "
            f"{d.margin:.1e}: {d.tokens[0]} and {d.tokens[1]}"
            + ("; a tie" if d.tie else "")
            for d in self.differences
        ]
        out += [
            f"  {f.cut_id}: frame {f.frame} ({f.time} s) flips between "
            f"{f.symbols[0]} and {f.symbols[1]}: margin {f.margin:.1e}, the features "
            f"move it by {f.shift:.1e}" + ("" if f.explained else "; NOT EXPLAINED")
            for f in self.flips
        ]
        return out


def first_difference(a: Hypothesis, b: Hypothesis) -> Optional[int]:
    """Return the first frame at which two hypotheses differ, None when none does."""
    events = [dict(zip(h.timestamps, h.tokens)) for h in (a, b)]
    frames = sorted(set(events[0]) | set(events[1]))
    return next((t for t in frames if events[0].get(t) != events[1].get(t)), None)


def decision_margin(hyp: OrtHypothesis, frame: int, head: str) -> float:
    """Return the margin of the decision that led to a difference at ``frame``.

    A transducer decides on a token at its frame alone.  Where a CTC token begins is
    also up to the frames since the token before it, one of which may have ended that.
    """
    if head == "transducer":
        return float(hyp.margins[frame])
    before = max((t for t in hyp.timestamps if t < frame), default=-1)
    return float(hyp.margins[before + 1 : frame + 1].min())


@torch.no_grad()
def decode_features(
    model: nn.Module,
    features: Sequence[Tensor],
    options: DecodeOptions,
    chunking: Optional[Chunking],
) -> list[Hypothesis]:
    """Decode each of N fbank tensors (F_n, 80) by PyTorch, apart from the others.

    Whole utterances go one at a time: padding to a longer one moves the scores of the
    front end's last frames, as in every Zipformer.  Chunks have no padding.
    """
    if chunking is None:
        return [decode_full_context(model, [f], options)[0] for f in features]
    return decode_streaming(
        model, features, chunking.chunk_size, chunking.left_context, options
    )


def compare_engines(
    model: nn.Module,
    files: ModelFiles,
    waves: Mapping[str, np.ndarray],
    options: DecodeOptions,
) -> Comparison:
    """Decode every wave by the three engines and by both features.

    Args:
      model: the PyTorch ``AsrModel`` on the CPU, in eval mode.
      files: float32 files exported from it.
      waves: id -> (S,) float32 in [-1, 1]; streams are given their tail here.
      options: greedy search over the head that the files hold.
    """
    chunking = files.chunking
    padded = [torch.from_numpy(w) for w in waves.values()]
    if chunking:
        padded = [pad_tail(w, chunking.chunk_size) for w in padded]
    same = [torch.from_numpy(sherpa_features(w.numpy())) for w in padded]
    own = compute_fbank(padded)
    ort = open_model(files, options)
    sherpa_onnx = SherpaRecogniser(files, options)
    answers = zip(
        waves,
        decode_features(model, own, options, chunking),
        decode_features(model, same, options, chunking),
        [ort.decode(f.numpy()) for f in same],
        _decode_sherpa(sherpa_onnx, list(waves.values())),
    )
    report = Comparison(prompts=len(waves))
    for i, (cut_id, audio, torch_hyp, ort_hyp, sherpa) in enumerate(answers):
        distance = _distance(own[i], same[i])
        report.feature_difference = max(report.feature_difference, distance)
        margin = float(ort_hyp.margins.min(initial=np.inf))
        report.smallest_margin = min(report.smallest_margin, margin)
        report.frames += len(ort_hyp.margins)
        report.tokens += len(sherpa.tokens)
        shown, shown_audio = map(sherpa_onnx.show, (torch_hyp, audio))
        for engine, ours, hyp in (
            ("ONNX Runtime", torch_hyp, ort_hyp),
            ("sherpa-onnx", shown, sherpa),
        ):
            frame = first_difference(ours, hyp)
            if frame is not None:
                report.differences.append(
                    Difference(
                        cut_id,
                        f"PyTorch and {engine}",
                        frame,
                        decision_margin(ort_hyp, frame, files.head),
                        (ours.tokens, hyp.tokens),
                    )
                )
        if first_difference(shown_audio, sherpa) is not None:
            logits = tuple(
                greedy_logits(model, f[i], options, chunking) for f in (own, same)
            )
            report.flips.append(find_flip(cut_id, logits, options.unk_id, distance))
    return report


def _decode_sherpa(
    sherpa: SherpaRecogniser, waves: list[np.ndarray]
) -> list[Hypothesis]:
    """Decode waves by sherpa-onnx, streams together and whole utterances alone."""
    if sherpa.chunking:
        return sherpa.decode(waves)
    return [sherpa.decode([wave])[0] for wave in waves]


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of two fbank tensors, inf for other lengths."""
    return float((a - b).abs().max()) if a.shape == b.shape else float("inf")
