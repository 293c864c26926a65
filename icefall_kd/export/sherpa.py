"""sherpa-onnx: the recogniser that the exported files are for.

A mistake in a configuration ends the process inside sherpa-onnx, without an exception;
so everything it needs is checked before it is called.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from icefall_kd import ENCODER_SHIFT, NUM_MEL_BINS, SAMPLE_RATE
from icefall_kd.core.files import Pathlike, open_text, write_text
from icefall_kd.data.features import num_frames
from icefall_kd.decoding import DecodeOptions, Hypothesis, get_search_class
from icefall_kd.decoding.streaming import tail_padding
from icefall_kd.export.files import ModelFiles, require_sherpa_metadata
from icefall_kd.zipformer.subsampling import MIN_FRAMES

# Of ours, what sherpa-onnx calls them: the others it does not have.
METHODS = {
    "greedy_search": "greedy_search",
    "modified_beam_search": "modified_beam_search",
    "ctc_greedy_search": "greedy_search",
}


@dataclass
class SherpaHypothesis(Hypothesis):
    """What sherpa-onnx answers; ``text`` is its own joining of the tokens.

    Attributes:
      pieces: the symbols of the tokens.
    """

    text: str = ""
    pieces: list[str] = field(default_factory=list)


def sherpa_version() -> str:
    """Return the version of the sherpa-onnx that is installed."""
    from importlib.metadata import version

    return version("sherpa-onnx")


def read_tokens(path: Pathlike) -> dict[str, int]:
    """Return symbol to id of a ``tokens.txt``."""
    with open_text(path) as f:
        pairs = [line.rsplit(maxsplit=1) for line in f]
    return {symbol: int(number) for symbol, number in pairs}


def shown_bytes(ids: Mapping[str, int]) -> dict[int, str]:
    """Return id to symbol of the byte tokens that sherpa-onnx shows as a character.

    A BPE model with byte fallback has the tokens ``<0x00>`` to ``<0xFF>``; sherpa-onnx
    prints those of visible ASCII characters and of the space as they are.
    """
    first, last = ids.get("<0x00>"), ids.get("<0xFF>")
    if first is None or last is None or last - first != 255:
        return {}
    return {first + byte: chr(byte) for byte in range(0x20, 0x7F)}


def sherpa_features(wave: np.ndarray) -> np.ndarray:
    """Return the fbank (F, 80) float32 that sherpa-onnx computes of a wave (S,).

    kaldi-native-fbank with sherpa-onnx's options; bit-equal to what its streams hold.
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
    """Offline or online recogniser of exported files, by their kind of encoder.

    Attributes:
      ids: symbol, as sherpa-onnx shows it with its space as ▁, to id.
      alike: id of a byte token to the id that a hypothesis has in its place: that of
        the piece with the same symbol, if there is one, else its own.
    """

    def __init__(self, files: ModelFiles, options: DecodeOptions, threads: int = 1):
        """Open the files.

        Raises:
          FileNotFoundError, ValueError: what sherpa-onnx would end the process for.
        """
        require_method(files, options)
        require_sherpa_metadata(files)
        self.chunking = files.chunking
        self.ids = read_tokens(files.tokens)
        shown = {i: s.replace(" ", "▁") for i, s in shown_bytes(self.ids).items()}
        for token, symbol in shown.items():
            self.ids.setdefault(symbol, token)
        self.alike = {i: self.ids[symbol] for i, symbol in shown.items()}
        common = {
            "tokens": str(files.tokens),
            "num_threads": threads,
            "sample_rate": SAMPLE_RATE,
            "feature_dim": NUM_MEL_BINS,
            "decoding_method": METHODS[options.method],
        }
        build = _open_ctc if files.head == "ctc" else _open_transducer
        self.recogniser = build(files, options, common)

    def show(self, hyp: Hypothesis) -> Hypothesis:
        """Return the tokens that sherpa-onnx would answer for the same decisions."""
        return replace(hyp, tokens=[self.alike.get(t, t) for t in hyp.tokens])

    def decode(self, waves: Sequence[np.ndarray]) -> list[SherpaHypothesis]:
        """Decode waves (S,) float32 in [-1, 1] together; streams get their tail."""
        waves = [_check_wave(wave) for wave in waves]
        if self.chunking is None:
            return self._decode_offline(waves)
        return self.decode_streams([[wave] for wave in waves])

    def _decode_offline(self, waves: list[np.ndarray]) -> list[SherpaHypothesis]:
        answers = [SherpaHypothesis() for _ in waves]
        # Of less than a frame of its output an encoder of whole utterances makes none.
        heard = [i for i, w in enumerate(waves) if num_frames(len(w)) >= MIN_FRAMES]
        streams = [self.recogniser.create_stream() for _ in heard]
        for stream, i in zip(streams, heard):
            stream.accept_waveform(SAMPLE_RATE, waves[i])
        if streams:
            self.recogniser.decode_streams(streams)
        for stream, i in zip(streams, heard):
            said = stream.result
            answers[i] = self._answer(said.tokens, said.timestamps, said.text)
        return answers

    def decode_streams(
        self, streams: Sequence[Iterable[np.ndarray]]
    ) -> list[SherpaHypothesis]:
        """Decode streams together, and give each its tail.

        Args:
          streams: the blocks (S,) float32 of each, as they come; no block is kept.
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
            self._advance(opened)
        for stream in opened:
            stream.accept_waveform(SAMPLE_RATE, tail)
            stream.input_finished()
        self._advance(opened)
        return [
            self._answer(r.tokens(s), r.timestamps(s), r.get_result(s)) for s in opened
        ]

    def _advance(self, streams: list[Any]) -> None:
        """Decode what the streams hold."""
        while ready := [s for s in streams if self.recogniser.is_ready(s)]:
            self.recogniser.decode_streams(ready)

    def _answer(
        self, tokens: Sequence[str], times: Sequence[float], text: str
    ) -> SherpaHypothesis:
        """Turn symbols back into ids; sherpa-onnx shows a leading ▁ as a space."""
        symbols = [t.replace(" ", "▁") for t in tokens]
        return SherpaHypothesis(
            tokens=[self.ids[s] for s in symbols],
            timestamps=[round(t / ENCODER_SHIFT) for t in times],
            text=text,
            pieces=symbols,
        )


def require_method(files: ModelFiles, options: DecodeOptions) -> None:
    """See that sherpa-onnx can search the files as ``options`` say.

    Raises:
      ValueError: if it cannot.
      FileNotFoundError: if it would need a file for it that is not there.
    """
    if options.method not in METHODS:
        raise ValueError(
            f"sherpa-onnx has no {options.method}; it has {sorted(METHODS)}, and "
            "bin.decode all methods"
        )
    head = get_search_class(options.method).head
    if head != files.head:
        raise ValueError(
            f"{files.encoder}: a {files.head} recogniser, {options.method} needs a "
            f"{head} one; export it with --head {head}"
        )
    if options.hotwords is not None:
        if options.method != "modified_beam_search" or not options.hotwords.text:
            raise ValueError(
                "sherpa-onnx takes hotwords from a file, and in modified_beam_search "
                f"alone; got {options.method}, file {options.hotwords.path}"
            )
        if not files.bpe_vocab.is_file():
            raise FileNotFoundError(
                f"{files.bpe_vocab}: not there, and sherpa-onnx cuts hotwords by it; "
                "bin.export writes it"
            )
    if head == "ctc" and options.blank_penalty:
        raise ValueError(
            f"sherpa-onnx has no blank penalty for CTC, got {options.blank_penalty:g}; "
            "leave it out, or use greedy_search over the transducer"
        )


def _open_transducer(files: ModelFiles, options: DecodeOptions, common: dict) -> Any:
    """Return a recogniser of sherpa-onnx; ``common`` is what all of them take."""
    import sherpa_onnx

    kind = (
        sherpa_onnx.OnlineRecognizer
        if files.chunking
        else sherpa_onnx.OfflineRecognizer
    )
    with tempfile.TemporaryDirectory() as folder:
        if options.hotwords is not None:
            copy = Path(folder) / "hotwords.txt"  # read once, by the constructor
            write_text(copy, options.hotwords.text)
            common = {
                **common,
                "hotwords_file": str(copy),
                "hotwords_score": options.hotwords.score,
                "modeling_unit": "bpe",
                "bpe_vocab": str(files.bpe_vocab),
            }
        return kind.from_transducer(
            encoder=str(files.encoder),
            decoder=str(files.decoder),
            joiner=str(files.joiner),
            max_active_paths=options.beam,
            blank_penalty=options.blank_penalty,
            **common,
        )


def _open_ctc(files: ModelFiles, options: DecodeOptions, common: dict) -> Any:
    """Do the same for a CTC model."""
    import sherpa_onnx

    if files.chunking:
        build = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc
    else:
        build = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc
    return build(model=str(files.encoder), **common)


def _check_wave(wave: np.ndarray) -> np.ndarray:
    """Return the wave; sherpa-onnx reads other shapes and types as other sounds."""
    if wave.ndim != 1 or wave.dtype != np.float32:
        raise ValueError(f"a wave must be (S,) float32, got {wave.shape} {wave.dtype}")
    return np.ascontiguousarray(wave)
