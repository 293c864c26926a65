"""Decode with exported files in sherpa-onnx.

sherpa-onnx ends the process without an exception if its configuration is invalid, so
this module validates options and files before.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from icefall_kd import ENCODER_SHIFT, NUM_MEL_BINS, SAMPLE_RATE
from icefall_kd.core.files import Pathlike, open_text, write_text
from icefall_kd.data.features import num_frames
from icefall_kd.decoding import DecodeOptions, Hypothesis, get_search_class
from icefall_kd.decoding.ctc_hlg_search import MAX_ACTIVE
from icefall_kd.decoding.search import check_graph
from icefall_kd.decoding.streaming import tail_padding
from icefall_kd.export.files import ModelFiles, check_sherpa_metadata
from icefall_kd.zipformer.subsampling import MIN_FRAMES

# methods that sherpa-onnx has: name here -> name in sherpa-onnx
METHODS = {
    "greedy_search": "greedy_search",
    "modified_beam_search": "modified_beam_search",
    "ctc_greedy_search": "greedy_search",
    "ctc_hlg": "greedy_search",  # with the option ctc_graph
}


@dataclass
class SherpaHypothesis(Hypothesis):
    """A hypothesis of sherpa-onnx.

    Attributes:
      text: text of sherpa-onnx.
      pieces: symbol of each token.
    """

    text: str = ""
    pieces: list[str] = field(default_factory=list)


def sherpa_version() -> str:
    """Return the version of sherpa-onnx."""
    return version("sherpa-onnx")


def read_tokens(path: Pathlike) -> dict[str, int]:
    """Return symbol -> id of a ``tokens.txt``."""
    with open_text(path) as f:
        pairs = [line.rsplit(maxsplit=1) for line in f]
    return {symbol: int(number) for symbol, number in pairs}


def printable_bytes(ids: Mapping[str, int]) -> dict[int, str]:
    """Return id -> character of the byte tokens that sherpa-onnx prints as characters.

    A BPE model with byte fallback has the tokens ``<0x00>`` to ``<0xFF>``.  sherpa-onnx
    replaces those of the space and of visible ASCII characters by the character.
    """
    first, last = ids.get("<0x00>"), ids.get("<0xFF>")
    if first is None or last is None or last - first != 255:
        return {}
    return {first + byte: chr(byte) for byte in range(0x20, 0x7F)}


def sherpa_features(wave: np.ndarray) -> np.ndarray:
    """Return the fbank (F, 80) float32 that sherpa-onnx computes for a wave (S,).

    kaldi-native-fbank with the options of sherpa-onnx gives bit-identical values.
    """
    import kaldi_native_fbank as knf

    options = knf.FbankOptions()
    options.frame_opts.samp_freq = SAMPLE_RATE
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = NUM_MEL_BINS
    options.mel_opts.low_freq = 20.0
    options.mel_opts.high_freq = -400.0  # below Nyquist: 7600 Hz
    options.mel_opts.is_librosa = False
    fbank = knf.OnlineFbank(options)
    fbank.accept_waveform(SAMPLE_RATE, np.asarray(wave, np.float32).tolist())
    fbank.input_finished()
    frames = [fbank.get_frame(i) for i in range(fbank.num_frames_ready)]
    return np.stack(frames) if frames else np.zeros((0, NUM_MEL_BINS), np.float32)


class SherpaRecogniser:
    """Offline or online recogniser of sherpa-onnx.

    Attributes:
      ids: symbol -> id, with ▁ for a space.
      byte_ids: id of a byte token -> id of the piece that sherpa-onnx prints in the
        same way, or the id of the byte token if the vocabulary has no such piece.
    """

    def __init__(self, files: ModelFiles, options: DecodeOptions, threads: int = 1):
        """Open the files.

        Raises:
          FileNotFoundError: if a file is missing.
          ValueError: if sherpa-onnx does not support the options or the files.
        """
        check_sherpa_options(files, options)
        check_sherpa_metadata(files)
        self.chunking = files.chunking
        self.ids = read_tokens(files.tokens)
        symbols = printable_bytes(self.ids)
        symbols = {i: symbol.replace(" ", "▁") for i, symbol in symbols.items()}
        for token, symbol in symbols.items():
            self.ids.setdefault(symbol, token)
        self.byte_ids = {i: self.ids[symbol] for i, symbol in symbols.items()}
        common = {
            "tokens": str(files.tokens),
            "num_threads": threads,
            "sample_rate": SAMPLE_RATE,
            "feature_dim": NUM_MEL_BINS,
            "decoding_method": METHODS[options.method],
        }
        open_files = _open_ctc if files.head == "ctc" else _open_transducer
        self.recogniser = open_files(files, options, common)

    def map_byte_tokens(self, hyp: Hypothesis) -> Hypothesis:
        """Return a hypothesis of PyTorch with the ids that :meth:`decode` returns.

        sherpa-onnx prints some byte tokens like pieces, so their ids become equal.
        """
        return replace(hyp, tokens=[self.byte_ids.get(t, t) for t in hyp.tokens])

    def decode(self, waves: Sequence[np.ndarray]) -> list[SherpaHypothesis]:
        """Decode waves (S,) float32 in [-1, 1] in one batch."""
        waves = [_check_wave(wave) for wave in waves]
        if self.chunking is None:
            return self._decode_offline(waves)
        return self.decode_streams([[wave] for wave in waves])

    def _decode_offline(self, waves: list[np.ndarray]) -> list[SherpaHypothesis]:
        found = [SherpaHypothesis() for _ in waves]
        # for shorter waves, a full-context encoder returns no frame
        rows = [i for i, w in enumerate(waves) if num_frames(len(w)) >= MIN_FRAMES]
        streams = [self.recogniser.create_stream() for _ in rows]
        for stream, i in zip(streams, rows):
            stream.accept_waveform(SAMPLE_RATE, waves[i])
        if streams:
            self.recogniser.decode_streams(streams)
        for stream, i in zip(streams, rows):
            result = stream.result
            found[i] = self._to_hypothesis(
                result.tokens, result.timestamps, result.text
            )
        return found

    def decode_streams(
        self, streams: Sequence[Iterable[np.ndarray]]
    ) -> list[SherpaHypothesis]:
        """Decode streams in one batch, each followed by silence.

        Args:
          streams: the blocks (S,) float32 of each stream.
        """
        tail = np.zeros(
            round(tail_padding(self.chunking.chunk_size) * SAMPLE_RATE), np.float32
        )
        r = self.recogniser
        opened = [r.create_stream() for _ in streams]
        for blocks in zip_longest(*streams):
            for stream, block in zip(opened, blocks):
                if block is not None:
                    stream.accept_waveform(SAMPLE_RATE, _check_wave(block))
            self._decode_ready(opened)
        for stream in opened:
            stream.accept_waveform(SAMPLE_RATE, tail)
            stream.input_finished()
        self._decode_ready(opened)
        return [
            self._to_hypothesis(r.tokens(s), r.timestamps(s), r.get_result(s))
            for s in opened
        ]

    def _decode_ready(self, streams: list[Any]) -> None:
        """Run all steps for which the streams have enough audio."""
        while ready := [s for s in streams if self.recogniser.is_ready(s)]:
            self.recogniser.decode_streams(ready)

    def _to_hypothesis(
        self, tokens: Sequence[str], times: Sequence[float], text: str
    ) -> SherpaHypothesis:
        """Return a result with ids; sherpa-onnx returns symbols, with ▁ as a space."""
        symbols = [t.replace(" ", "▁") for t in tokens]
        return SherpaHypothesis(
            tokens=[self.ids[s] for s in symbols],
            timestamps=[round(t / ENCODER_SHIFT) for t in times],
            text=text,
            pieces=symbols,
        )


def check_sherpa_options(files: ModelFiles, options: DecodeOptions) -> None:
    """Check that sherpa-onnx supports the options for these files.

    Raises:
      ValueError: if method, hotwords or blank penalty are not supported, or a graph is
        missing or not supported.
      FileNotFoundError: if a file that hotwords need is missing.
    """
    if options.method not in METHODS:
        raise ValueError(
            f"--method {options.method} is not supported by sherpa-onnx. Available: "
            f"{', '.join(METHODS)}; bin.decode supports all methods"
        )
    head = get_search_class(options.method).head
    if head != files.head:
        raise ValueError(
            f"{files.encoder}: a {files.head} recogniser, but {options.method} needs a "
            f"{head} recogniser; export it with --head {head}"
        )
    if options.hotwords is not None:
        if options.method != "modified_beam_search" or not options.hotwords.text:
            raise ValueError(
                "--hotwords: sherpa-onnx supports only hotwords from a file, with "
                f"--method modified_beam_search; got {options.method}, file "
                f"{options.hotwords.path}"
            )
        if not files.bpe_vocab.is_file():
            raise FileNotFoundError(
                f"{files.bpe_vocab}: not found, but sherpa-onnx needs it for hotwords; "
                "write it with bin.export"
            )
    check_graph(options, get_search_class(options.method).uses_graph)
    if head == "ctc" and options.blank_penalty:
        raise ValueError(
            f"--blank-penalty {options.blank_penalty:g}: sherpa-onnx has no blank "
            "penalty for CTC; omit it, or use --method greedy_search"
        )


def _open_transducer(files: ModelFiles, options: DecodeOptions, common: dict) -> Any:
    """Return a transducer recogniser of sherpa-onnx with the options ``common``."""
    import sherpa_onnx

    recogniser_class = (
        sherpa_onnx.OnlineRecognizer
        if files.chunking
        else sherpa_onnx.OfflineRecognizer
    )
    with tempfile.TemporaryDirectory() as folder:
        if options.hotwords is not None:
            hotwords = Path(folder) / "hotwords.txt"  # read once, by the constructor
            write_text(hotwords, options.hotwords.text)
            common = {
                **common,
                "hotwords_file": str(hotwords),
                "hotwords_score": options.hotwords.score,
                "modeling_unit": "bpe",
                "bpe_vocab": str(files.bpe_vocab),
            }
        return recogniser_class.from_transducer(
            encoder=str(files.encoder),
            decoder=str(files.decoder),
            joiner=str(files.joiner),
            max_active_paths=options.beam,
            blank_penalty=options.blank_penalty,
            **common,
        )


def _open_ctc(files: ModelFiles, options: DecodeOptions, common: dict) -> Any:
    """Return a CTC recogniser of sherpa-onnx with the options ``common``."""
    import sherpa_onnx

    if files.chunking:
        open_model = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc
    else:
        open_model = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc
    graph = str(options.graph.path) if options.graph else ""
    return open_model(
        model=str(files.encoder), ctc_graph=graph, ctc_max_active=MAX_ACTIVE, **common
    )


def _check_wave(wave: np.ndarray) -> np.ndarray:
    """Check shape and type of a wave, because sherpa-onnx misinterprets others."""
    if wave.ndim != 1 or wave.dtype != np.float32:
        raise ValueError(f"a wave must be (S,) float32, got {wave.shape} {wave.dtype}")
    return np.ascontiguousarray(wave)
