"""Decode with exported files in ONNX Runtime: greedy search over one utterance.

The search is that of sherpa-onnx.  It also returns the margin between the two best
scores of each frame, for the comparison of the engines.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from icefall_kd import BLANK_ID, NUM_MEL_BINS
from icefall_kd.core.files import Pathlike
from icefall_kd.decoding import GREEDY_METHODS, DecodeOptions, Hypothesis
from icefall_kd.decoding.streaming import hop_frames, num_steps, window_frames
from icefall_kd.export.files import ModelFiles
from icefall_kd.zipformer.subsampling import MIN_FRAMES

LOG_ERRORS = 3  # log level of onnxruntime: errors, without warnings


@dataclass
class OrtHypothesis(Hypothesis):
    """A hypothesis with the margin of each frame.

    Attributes:
      margins: (T,) float32, difference of the two best logits of each frame.
    """

    margins: np.ndarray = None

    def add_frame(self, frame: int, logits: np.ndarray) -> int:
        """Return the best id of logits (V,), and update score and margins."""
        second, first = np.partition(logits, -2)[-2:]
        self.margins[frame] = first - second
        self.score -= float(np.log(np.exp(logits - first).sum()))
        return int(logits.argmax())


def open_session(path: Pathlike, threads: int = 1):
    """Return an ``onnxruntime.InferenceSession`` on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = threads
    options.log_severity_level = LOG_ERRORS
    return onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )


class OrtModel(ABC):
    """Base class of exported recognisers in ONNX Runtime."""

    method: str  # the supported search

    def __init__(self, files: ModelFiles, options: DecodeOptions, threads: int = 1):
        """Open the files.

        Raises:
          FileNotFoundError: if a file is missing.
          ValueError: if the options have another method than greedy search.
        """
        if options.method != self.method:
            raise ValueError(
                f"{options.method} is not supported in ONNX Runtime. Available: "
                f"{self.method}"
            )
        files.check_exist()
        self.chunking = files.chunking
        self.options = options
        self.encoder, *self.sessions = (open_session(p, threads) for p in files.onnx)

    def decode(self, features: np.ndarray) -> OrtHypothesis:
        """Decode fbank features (F, 80)."""
        if features.ndim != 2 or features.shape[1] != NUM_MEL_BINS:
            raise ValueError(
                f"features must be (F, {NUM_MEL_BINS}), got {features.shape}"
            )
        return self.search(self.encode(features))

    def encode(self, features: np.ndarray) -> np.ndarray:
        """Return the first output (T', D) of the encoder for fbank (F, 80)."""
        width = self.encoder.get_outputs()[0].shape[2]
        if self.chunking is None and len(features) < MIN_FRAMES:
            return np.zeros((0, width), np.float32)
        if self.chunking is None:
            x = features[None].astype(np.float32)
            lens = np.array([len(features)], dtype=np.int64)
            return self.encoder.run(None, {"x": x, "x_lens": lens})[0][0]
        chunks = [chunk[0] for chunk in self.encode_chunks([features])]
        return np.concatenate(chunks) if chunks else np.zeros((0, width), np.float32)

    def encode_chunks(self, features: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Encode N streams of equal length.

        Yields:
          (N, C / 2, D) float32 for each chunk.
        """
        inputs = self.encoder.get_inputs()
        states = {i.name: self._zeros(i, len(features)) for i in inputs[1:]}
        chunk_size = self.chunking.chunk_size
        batch = np.stack(features).astype(np.float32)
        for step in range(num_steps(batch.shape[1], chunk_size)):
            begin = step * hop_frames(chunk_size)
            x = batch[:, begin : begin + window_frames(chunk_size)]
            out, *new_states = self.encoder.run(None, {"x": x, **states})
            states = dict(zip(states, new_states))
            yield out

    @staticmethod
    def _zeros(node, batch_size: int) -> np.ndarray:
        """Return zeros in the shape of an input; its dynamic axis is the batch."""
        shape = [d if isinstance(d, int) else batch_size for d in node.shape]
        return np.zeros(shape, np.int64 if "int64" in node.type else np.float32)

    @abstractmethod
    def search(self, encoder_out: np.ndarray) -> OrtHypothesis:
        """Return the hypothesis of greedy search over the encoder's output (T', D)."""


class OrtTransducer(OrtModel):
    """An exported transducer in ONNX Runtime."""

    method = GREEDY_METHODS["transducer"]

    def __init__(self, files: ModelFiles, options: DecodeOptions, threads: int = 1):
        super().__init__(files, options, threads)
        self.decoder, self.joiner = self.sessions
        metadata = self.decoder.get_modelmeta().custom_metadata_map
        self.context_size = int(metadata["context_size"])

    def search(self, encoder_out: np.ndarray) -> OrtHypothesis:
        context = [-1] * (self.context_size - 1) + [BLANK_ID]
        predicted = self._predict(context)
        hyp = OrtHypothesis(margins=np.zeros(len(encoder_out), np.float32))
        for t, frame in enumerate(encoder_out):
            logits = self.joiner.run(
                None, {"encoder_out": frame[None], "decoder_out": predicted}
            )[0][0]
            logits[BLANK_ID] -= self.options.blank_penalty
            best = hyp.add_frame(t, logits)
            if best not in (BLANK_ID, self.options.unk_id):
                hyp.tokens.append(best)
                hyp.timestamps.append(t)
                context = context[1:] + [best]
                predicted = self._predict(context)
        return hyp

    def _predict(self, context: list[int]) -> np.ndarray:
        return self.decoder.run(None, {"y": np.array([context], dtype=np.int64)})[0]


class OrtCtc(OrtModel):
    """An exported CTC model in ONNX Runtime."""

    method = GREEDY_METHODS["ctc"]

    def __init__(self, files: ModelFiles, options: DecodeOptions, threads: int = 1):
        if options.blank_penalty:
            raise ValueError(
                f"blank_penalty {options.blank_penalty:g}: not supported for exported "
                "CTC models, as in sherpa-onnx; omit it"
            )
        super().__init__(files, options, threads)

    def search(self, encoder_out: np.ndarray) -> OrtHypothesis:
        hyp = OrtHypothesis(margins=np.zeros(len(encoder_out), np.float32))
        last = BLANK_ID
        for t, log_probs in enumerate(encoder_out):
            best = hyp.add_frame(t, log_probs)
            if best not in (BLANK_ID, last):
                hyp.tokens.append(best)
                hyp.timestamps.append(t)
            last = best
        return hyp


def open_model(files: ModelFiles, options: DecodeOptions, threads: int = 1) -> OrtModel:
    """Open exported files of either head; see :class:`OrtModel`."""
    engines = {"transducer": OrtTransducer, "ctc": OrtCtc}
    return engines[files.head](files, options, threads)
