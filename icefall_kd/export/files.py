"""Names and digests of the files of an export folder."""

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

# Checkpoint, digests of all files, parameters and what else a result JSON repeats.
INFO = "export.json"
MAIN = {"transducer": "encoder", "ctc": "model"}  # the file that reads the features


@dataclass(frozen=True)
class ModelFiles:
    """The files that make a recogniser.

    Attributes:
      encoder: reads the features; of a CTC recogniser the whole model.
      decoder, joiner: of a transducer; None: a CTC recogniser.
      chunking: of the streaming encoder; None: the encoder reads whole utterances.
    """

    encoder: Path
    tokens: Path
    decoder: Optional[Path] = None
    joiner: Optional[Path] = None
    chunking: Optional[Chunking] = None

    @classmethod
    def of(
        cls,
        folder: Pathlike,
        chunking: Optional[Chunking] = None,
        int8: bool = False,
        head: str = "transducer",
    ) -> "ModelFiles":
        """Name the files in ``folder``; they need not exist."""
        folder = Path(folder)
        end = ".int8.onnx" if int8 else ".onnx"
        encoder = MAIN[head]
        if chunking:
            encoder += (
                f"-streaming-chunk-{chunking.chunk_size}-left-{chunking.left_context}"
            )
        transducer = head == "transducer"
        return cls(
            encoder=folder / (encoder + end),
            tokens=folder / "tokens.txt",
            decoder=folder / ("decoder" + end) if transducer else None,
            joiner=folder / ("joiner" + end) if transducer else None,
            chunking=chunking,
        )

    @property
    def bpe_vocab(self) -> Path:
        """Pieces and their scores, by which sherpa-onnx cuts hotwords."""
        return self.tokens.with_name("bpe.vocab")

    @property
    def bpe_model(self) -> Path:
        """Model of sentencepiece, by which hotwords are cut here."""
        return self.tokens.with_name("bpe.model")

    @property
    def head(self) -> str:
        """What of the student the files hold beside its encoder."""
        return "ctc" if self.decoder is None else "transducer"

    @property
    def int8(self) -> "ModelFiles":
        """The 8-bit files beside these."""
        return ModelFiles.of(self.encoder.parent, self.chunking, True, self.head)

    @property
    def float32(self) -> "ModelFiles":
        """The float32 files beside these."""
        return ModelFiles.of(self.encoder.parent, self.chunking, False, self.head)

    @property
    def onnx(self) -> tuple[Path, ...]:
        """Encoder, decoder and joiner, or the CTC model."""
        files = (self.encoder, self.decoder, self.joiner)
        return tuple(path for path in files if path is not None)

    @property
    def parts(self) -> tuple[Path, ...]:
        """All files that recognition reads; the last two for hotwords alone."""
        return (*self.onnx, self.tokens, self.bpe_vocab, self.bpe_model)

    @property
    def digests(self) -> dict[str, str]:
        """Name to SHA-256 of each part that the folder has."""
        return {p.name: sha256_file(p) for p in self.parts if p.is_file()}

    @property
    def sha256(self) -> str:
        """One digest of all parts, as they are now."""
        return hashlib.sha256(repr(sorted(self.digests.items())).encode()).hexdigest()

    def read_info(self) -> dict[str, Any]:
        """Return :data:`INFO` of the folder, the parts' digests compared with it.

        Raises:
          FileNotFoundError: naming the files that are missing.
          ValueError: naming the parts that the export did not write.
        """
        path = self.require().encoder.parent / INFO
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not there; bin.export writes it")
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
                f"{path}: an older version wrote it, without digests of the files; "
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

    def require(self) -> "ModelFiles":
        """Return self.

        Raises:
          FileNotFoundError: naming the files that are missing.
        """
        missing = [p for p in (*self.onnx, self.tokens) if not p.is_file()]
        if missing:
            folder, name = self.encoder.parent, MAIN[self.head]
            there = sorted(path.name for path in folder.glob(f"{name}*.onnx"))
            options = self.head + (" --streaming" if self.chunking else "")
            if self.encoder.name.endswith(".int8.onnx"):
                options += " --check-shar SET"
            message = (
                f"{', '.join(map(str, missing))}: not there; bin.export --head "
                f"{options} writes them ({name}s in the folder: {there or 'none'})"
            )
            if not self.chunking and any("-streaming-" in path for path in there):
                message += "; --streaming takes a streaming one"
            raise FileNotFoundError(message)
        return self


def find_chunking(
    folder: Pathlike,
    chunk_size: Optional[int] = None,
    left_context: Optional[int] = None,
    int8: bool = False,
    head: str = "transducer",
) -> Chunking:
    """Return the chunks of the one streaming encoder of a folder.

    Args:
      chunk_size, left_context: of that encoder, where the folder has several; None:
        any.
      int8, head: as :meth:`ModelFiles.of`.
    Raises:
      FileNotFoundError: if the folder has no such encoder.
      ValueError: if it has several; the message names them.
    """
    if chunk_size and left_context:
        return Chunking(chunk_size, left_context)
    start, end = f"{MAIN[head]}-streaming-chunk-", ".int8.onnx" if int8 else ".onnx"
    pattern = re.compile(rf"{start}(\d+)-left-(\d+){re.escape(end)}")
    there = sorted(path.name for path in Path(folder).glob(f"{MAIN[head]}*.onnx"))
    found = {m[0]: (int(m[1]), int(m[2])) for m in map(pattern.fullmatch, there) if m}
    fitting = {
        name: size
        for name, size in found.items()
        if chunk_size in (None, size[0]) and left_context in (None, size[1])
    }
    if not fitting:
        wanted = f"{start}{chunk_size or '*'}-left-{left_context or '*'}{end}"
        options = f"{head} --streaming" + (" --check-shar SET" if int8 else "")
        raise FileNotFoundError(
            f"{folder}: no {wanted}; bin.export --head {options} writes it "
            f"({MAIN[head]}s in the folder: {there or 'none'})"
        )
    if len(fitting) > 1:
        raise ValueError(
            f"{folder} has several streaming encoders, {', '.join(fitting)}; choose "
            "one with --chunk-size and --left-context"
        )
    return Chunking(*next(iter(fitting.values())))


def exported_files(folder: Path) -> list[Path]:
    """Return the ONNX files in ``folder`` with a name that bin.export gives."""
    names = (*MAIN.values(), "decoder", "joiner")
    return [path for name in names for path in sorted(folder.glob(f"{name}*.onnx"))]


MODEL_TYPE = "zipformer2"


OFFLINE_CTC = "zipformer2_ctc"  # icefall's name; a streaming one has MODEL_TYPE


OUTPUTS = {"transducer": "encoder_out", "ctc": "log_probs"}  # first of an encoder


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


def _join(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


def model_type(streaming: bool, head: str) -> str:
    """Return what sherpa-onnx calls this kind of encoder."""
    return OFFLINE_CTC if head == "ctc" and not streaming else MODEL_TYPE


def offline_encoder_metadata(head: str) -> dict[str, str]:
    """Return the metadata of an encoder that reads whole utterances.

    ``tail_padding``, in seconds of digital silence that a client appends to the audio,
    is for people: sherpa-onnx does not read it.
    """
    return {
        "model_type": model_type(False, head),
        "version": "1",
        "model_author": "icefall_kd",
        "comment": f"non-streaming zipformer2 {head}",
        "tail_padding": "0",
    }


def streaming_encoder_metadata(
    encoder: Zipformer2, chunking: Chunking, head: str
) -> dict[str, str]:
    """Return the metadata of an encoder that reads chunks.

    sherpa-onnx makes the initial states from them.  Left contexts are in frames of
    each stack's own rate; ``T`` and ``decode_chunk_len`` in fbank frames.
    """
    left = [chunking.left_context // d for d in encoder.config.downsampling_factor]
    return {
        **offline_encoder_metadata(head),
        "model_type": model_type(True, head),
        "comment": f"streaming zipformer2 {head}",
        "tail_padding": str(tail_padding(chunking.chunk_size)),
        "T": str(window_frames(chunking.chunk_size)),
        "decode_chunk_len": str(hop_frames(chunking.chunk_size)),
        "num_encoder_layers": _join(encoder.config.num_encoder_layers),
        "encoder_dims": _join(encoder.config.encoder_dim),
        "cnn_module_kernels": _join(encoder.config.cnn_module_kernel),
        "left_context_len": _join(left),
        "query_head_dims": _join(encoder.config.query_head_dim),
        "value_head_dims": _join(encoder.config.value_head_dim),
        "num_heads": _join(encoder.config.num_heads),
    }


def add_metadata(path: Pathlike, metadata: Mapping[str, str]) -> None:
    """Write ``metadata`` into an ONNX file."""
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, dict(metadata))
    with write_atomically(path) as aside:
        onnx.save(model, str(aside))


def read_metadata(path: Pathlike) -> dict[str, str]:
    """Read the metadata of an ONNX file."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return {p.key: p.value for p in model.metadata_props}


def read_outputs(path: Pathlike) -> list[str]:
    """Read the names of an ONNX file's outputs."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return [output.name for output in model.graph.output]


def require_sherpa_metadata(files: ModelFiles) -> None:
    """See that sherpa-onnx can open the files as the kind of recogniser they name.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if metadata are missing or of the other kind; the message names file,
        keys and remedy.
    """
    files.require()
    encoder = read_metadata(files.encoder)
    output = read_outputs(files.encoder)[0]
    if output != OUTPUTS[files.head]:
        raise ValueError(
            f"{files.encoder}: gives {output}, a {files.head} recogniser needs "
            f"{OUTPUTS[files.head]}; export it with --head {files.head}"
        )
    streaming = "decode_chunk_len" in encoder
    expected = model_type(streaming, files.head)
    if encoder.get("model_type") != expected:
        raise ValueError(
            f"{files.encoder}: model_type is {encoder.get('model_type')!r}, not "
            f"{expected!r}; export the model again"
        )
    if streaming != (files.chunking is not None):
        kinds = ("whole utterances", "chunks")
        raise ValueError(
            f"{files.encoder}: this encoder reads {kinds[streaming]}, wanted is one "
            f"for {kinds[not streaming]}; export that kind"
        )
    wanted = []
    if files.decoder:
        wanted.append((files.decoder, read_metadata(files.decoder), DECODER_KEYS))
    if streaming:
        wanted.append((files.encoder, encoder, STREAMING_KEYS))
    for path, metadata, keys in wanted:
        missing = [k for k in keys if k not in metadata]
        if missing:
            raise ValueError(f"{path}: lacks the metadata {missing}; export it again")
