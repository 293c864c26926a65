"""Names and digests of the files of an export folder."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from icefall_kd.core.files import Pathlike, read_json, sha256_file
from icefall_kd.recognition.setting import Chunking

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
