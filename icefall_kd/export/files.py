"""Files of an export folder: names, hashes and ONNX metadata.

sherpa-onnx ends the process without a Python exception if a metadata key is missing or
an encoder is of the wrong kind.  :func:`check_sherpa_metadata` detects this before.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from icefall_kd.core.files import Pathlike, read_json, sha256_file, write_atomically
from icefall_kd.decoding.streaming import hop_frames, tail_padding, window_frames
from icefall_kd.recognition.options import Chunking
from icefall_kd.zipformer.encoder import Zipformer2

INFO = "export.json"  # checkpoint, hashes of the files, parameters, checks
# head -> stem of the ONNX file that reads the features, and its first output
MAIN = {"transducer": "encoder", "ctc": "model"}
OUTPUTS = {"transducer": "encoder_out", "ctc": "log_probs"}
STREAMING_KEYS = (
    "encoder_dims",
    "query_head_dims",
    "value_head_dims",
    "num_heads",
    "num_encoder_layers",
    "cnn_module_kernels",
    "left_context_len",
    "T",
    "decode_chunk_len",
)
DECODER_KEYS = ("context_size", "vocab_size")


@dataclass(frozen=True)
class ModelFiles:
    """Files of an exported recogniser.

    Attributes:
      encoder: ONNX file that reads the features; for CTC, the complete model.
      tokens: tokens.txt.
      decoder, joiner: ONNX files of a transducer; None for CTC.
      chunking: chunks of a streaming encoder; None for full context.
    """

    encoder: Path
    tokens: Path
    decoder: Optional[Path] = None
    joiner: Optional[Path] = None
    chunking: Optional[Chunking] = None

    @classmethod
    def in_folder(
        cls,
        folder: Pathlike,
        chunking: Optional[Chunking] = None,
        int8: bool = False,
        head: str = "transducer",
    ) -> "ModelFiles":
        """Return the paths in ``folder``; the files may not exist yet."""
        folder = Path(folder)
        suffix = ".int8.onnx" if int8 else ".onnx"
        encoder = MAIN[head]
        if chunking:
            encoder += (
                f"-streaming-chunk-{chunking.chunk_size}-left-{chunking.left_context}"
            )
        is_transducer = head == "transducer"
        return cls(
            encoder=folder / (encoder + suffix),
            tokens=folder / "tokens.txt",
            decoder=folder / ("decoder" + suffix) if is_transducer else None,
            joiner=folder / ("joiner" + suffix) if is_transducer else None,
            chunking=chunking,
        )

    @property
    def folder(self) -> Path:
        return self.encoder.parent

    @property
    def bpe_vocab(self) -> Path:
        """Pieces and scores, with which sherpa-onnx tokenises hotwords."""
        return self.tokens.with_name("bpe.vocab")

    @property
    def bpe_model(self) -> Path:
        """sentencepiece model, with which icefall_kd reads hotwords and graphs."""
        return self.tokens.with_name("bpe.model")

    @property
    def graph(self) -> Path:
        """Graph of words for a CTC model, as ``--graph`` of bin.export wrote it."""
        return self.tokens.with_name("HLG.fst")

    @property
    def head(self) -> str:
        return "ctc" if self.decoder is None else "transducer"

    @property
    def int8(self) -> "ModelFiles":
        """The 8-bit files of the same model."""
        return ModelFiles.in_folder(self.folder, self.chunking, True, self.head)

    @property
    def float32(self) -> "ModelFiles":
        """The float32 files of the same model."""
        return ModelFiles.in_folder(self.folder, self.chunking, False, self.head)

    @property
    def onnx(self) -> tuple[Path, ...]:
        """Encoder, decoder and joiner, or the CTC model."""
        files = (self.encoder, self.decoder, self.joiner)
        return tuple(path for path in files if path is not None)

    @property
    def parts(self) -> tuple[Path, ...]:
        """All files that recognition reads; the last three only for some methods."""
        files = (*self.onnx, self.tokens, self.bpe_vocab, self.bpe_model)
        return files if self.decoder else (*files, self.graph)

    @property
    def digests(self) -> dict[str, str]:
        """Name -> SHA-256 of each existing part."""
        return {p.name: sha256_file(p) for p in self.parts if p.is_file()}

    @property
    def sha256(self) -> str:
        """SHA-256 of all existing parts."""
        return hashlib.sha256(repr(sorted(self.digests.items())).encode()).hexdigest()

    def check_exist(self) -> "ModelFiles":
        """Return self.

        Raises:
          FileNotFoundError: if an ONNX file or tokens.txt is missing.
        """
        missing = [p for p in (*self.onnx, self.tokens) if not p.is_file()]
        if missing:
            name = MAIN[self.head]
            found = sorted(path.name for path in self.folder.glob(f"{name}*.onnx"))
            options = self.head + (" --streaming" if self.chunking else "")
            if self.encoder.name.endswith(".int8.onnx"):
                options += " --check-shar SET"
            message = (
                f"{', '.join(map(str, missing))}: not found; run bin.export "
                f"--head {options} ({name} files in the folder: {found or 'none'})"
            )
            if not self.chunking and any("-streaming-" in path for path in found):
                message += "; use --streaming to run a streaming encoder"
            raise FileNotFoundError(message)
        return self

    def read_info(self) -> dict[str, Any]:
        """Return the contents of :data:`INFO`, if it describes the existing files.

        Raises:
          FileNotFoundError: if a file is missing.
          ValueError: if the hash of a file differs from that in :data:`INFO`.
        """
        path = self.check_exist().folder / INFO
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; write it with bin.export")
        info = read_json(path)
        remedy = (
            "export again: python -m icefall_kd.bin.export --checkpoint "
            f"{info.get('checkpoint')} --out-dir {path.parent} --head {self.head}"
        )
        if self.chunking:
            remedy += (
                f" --streaming --chunk-size {self.chunking.chunk_size}"
                f" --left-context {self.chunking.left_context}"
            )
        if "files" not in info:
            raise ValueError(
                f"{path}: written by an older version, without hashes of the files; "
                f"{remedy}"
            )
        wrong = [
            f"{path.with_name(name)}: "
            + ("changed after" if name in info["files"] else "not a file of")
            for name, digest in self.digests.items()
            if info["files"].get(name) != digest
        ]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)} the export that {path} describes (SHA-256); "
                f"{remedy}"
            )
        return info


def find_chunking(
    folder: Pathlike,
    chunk_size: Optional[int] = None,
    left_context: Optional[int] = None,
    int8: bool = False,
    head: str = "transducer",
) -> Chunking:
    """Return the chunking of the only streaming encoder in a folder.

    Args:
      folder: export folder.
      chunk_size, left_context: in 50 Hz frames, to choose one of several encoders.
      int8: whether to search for 8-bit encoders.
      head: "transducer" or "ctc".
    Raises:
      FileNotFoundError: if no encoder matches.
      ValueError: if several encoders match; the message lists them.
    """
    if chunk_size and left_context:
        return Chunking(chunk_size, left_context)
    start, end = f"{MAIN[head]}-streaming-chunk-", ".int8.onnx" if int8 else ".onnx"
    pattern = re.compile(rf"{start}(\d+)-left-(\d+){re.escape(end)}")
    found = sorted(path.name for path in Path(folder).glob(f"{MAIN[head]}*.onnx"))
    matching = {
        match[0]: Chunking(int(match[1]), int(match[2]))
        for match in map(pattern.fullmatch, found)
        if match
        and chunk_size in (None, int(match[1]))
        and left_context in (None, int(match[2]))
    }
    if not matching:
        name = f"{start}{chunk_size or '*'}-left-{left_context or '*'}{end}"
        options = f"{head} --streaming" + (" --check-shar SET" if int8 else "")
        raise FileNotFoundError(
            f"{folder}: no {name}; write it with bin.export --head {options} "
            f"({MAIN[head]} files in the folder: {found or 'none'})"
        )
    if len(matching) > 1:
        raise ValueError(
            f"{folder}: several streaming encoders, {', '.join(matching)}; choose one "
            "with --chunk-size and --left-context"
        )
    return next(iter(matching.values()))


def list_exported_files(folder: Path) -> list[Path]:
    """Return the ONNX files in ``folder`` whose names are those of bin.export."""
    names = (*MAIN.values(), "decoder", "joiner")
    return [path for name in names for path in sorted(folder.glob(f"{name}*.onnx"))]


def get_model_type(is_streaming: bool, head: str) -> str:
    """Return the ``model_type`` of an encoder in sherpa-onnx."""
    return "zipformer2_ctc" if head == "ctc" and not is_streaming else "zipformer2"


def offline_encoder_metadata(head: str) -> dict[str, str]:
    """Return the metadata of a full-context encoder.

    ``tail_padding`` is the seconds of silence that a client must append to the audio.
    sherpa-onnx does not read it.
    """
    return {
        "model_type": get_model_type(False, head),
        "version": "1",
        "model_author": "icefall_kd",
        "comment": f"non-streaming zipformer2 {head}",
        "tail_padding": "0",
    }


def streaming_encoder_metadata(
    encoder: Zipformer2, chunking: Chunking, head: str
) -> dict[str, str]:
    """Return the metadata of a streaming encoder.

    sherpa-onnx creates the initial states from these shapes.  Each stack has its left
    context in frames of its own rate.  ``T`` and ``decode_chunk_len`` are in fbank
    frames.
    """
    config = encoder.config
    left = [chunking.left_context // d for d in config.downsampling_factor]
    return {
        **offline_encoder_metadata(head),
        "model_type": get_model_type(True, head),
        "comment": f"streaming zipformer2 {head}",
        "tail_padding": str(tail_padding(chunking.chunk_size)),
        "T": str(window_frames(chunking.chunk_size)),
        "decode_chunk_len": str(hop_frames(chunking.chunk_size)),
        "num_encoder_layers": _join(config.num_encoder_layers),
        "encoder_dims": _join(config.encoder_dim),
        "cnn_module_kernels": _join(config.cnn_module_kernel),
        "left_context_len": _join(left),
        "query_head_dims": _join(config.query_head_dim),
        "value_head_dims": _join(config.value_head_dim),
        "num_heads": _join(config.num_heads),
    }


def _join(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


def add_metadata(path: Pathlike, metadata: Mapping[str, str]) -> None:
    """Write ``metadata`` into an ONNX file."""
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, dict(metadata))
    with write_atomically(path) as temporary:
        onnx.save(model, str(temporary))


def read_metadata(path: Pathlike) -> dict[str, str]:
    """Return the metadata of an ONNX file."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return {p.key: p.value for p in model.metadata_props}


def read_output_names(path: Pathlike) -> list[str]:
    """Return the names of an ONNX file's outputs."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return [output.name for output in model.graph.output]


def check_sherpa_metadata(files: ModelFiles) -> None:
    """Check that sherpa-onnx can open the files.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if metadata are missing, or the encoder has the wrong head or kind.
    """
    files.check_exist()
    encoder = read_metadata(files.encoder)
    output = read_output_names(files.encoder)[0]
    if output != OUTPUTS[files.head]:
        raise ValueError(
            f"{files.encoder}: the output is {output}, but a {files.head} recogniser "
            f"needs {OUTPUTS[files.head]}; export it with --head {files.head}"
        )
    is_streaming = "decode_chunk_len" in encoder
    expected = get_model_type(is_streaming, files.head)
    if encoder.get("model_type") != expected:
        raise ValueError(
            f"{files.encoder}: model_type is {encoder.get('model_type')!r} instead of "
            f"{expected!r}; export the model again"
        )
    if is_streaming != (files.chunking is not None):
        kinds = ("full-context", "streaming")
        raise ValueError(
            f"{files.encoder}: the encoder is {kinds[is_streaming]} instead of "
            f"{kinds[not is_streaming]}; export it "
            f"{'without' if is_streaming else 'with'} --streaming"
        )
    required = []
    if files.decoder:
        required.append((files.decoder, read_metadata(files.decoder), DECODER_KEYS))
    if is_streaming:
        required.append((files.encoder, encoder, STREAMING_KEYS))
    for path, metadata, keys in required:
        missing = [k for k in keys if k not in metadata]
        if missing:
            raise ValueError(f"{path}: missing metadata {missing}; export it again")
