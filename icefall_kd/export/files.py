"""Names of the files of an export folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple

from icefall_kd.decoding.setting import Chunking
from icefall_kd.io import Pathlike

INFO = "export.json"  # checkpoint, parameters and what else a result JSON repeats


@dataclass(frozen=True)
class ModelFiles:
    """The four files that make a recogniser.

    Attributes:
      chunking: of the streaming encoder; None: the encoder reads whole utterances.
    """

    encoder: Path
    decoder: Path
    joiner: Path
    tokens: Path
    chunking: Optional[Chunking] = None

    @classmethod
    def of(
        cls, folder: Pathlike, chunking: Optional[Chunking] = None, int8: bool = False
    ) -> "ModelFiles":
        """Name the files in ``folder``; they need not exist."""
        folder = Path(folder)
        end = ".int8.onnx" if int8 else ".onnx"
        encoder = "encoder"
        if chunking:
            encoder += (
                f"-streaming-chunk-{chunking.chunk_size}-left-{chunking.left_context}"
            )
        return cls(
            encoder=folder / (encoder + end),
            decoder=folder / ("decoder" + end),
            joiner=folder / ("joiner" + end),
            tokens=folder / "tokens.txt",
            chunking=chunking,
        )

    @property
    def onnx(self) -> Tuple[Path, Path, Path]:
        """Encoder, decoder and joiner."""
        return self.encoder, self.decoder, self.joiner

    def require(self) -> "ModelFiles":
        """Return self.

        Raises:
          FileNotFoundError: naming the files that are missing.
        """
        missing = [p for p in (*self.onnx, self.tokens) if not p.is_file()]
        if missing:
            there = sorted(p.name for p in self.encoder.parent.glob("encoder*.onnx"))
            raise FileNotFoundError(
                f"{', '.join(map(str, missing))}: not there; bin.export writes them "
                f"(encoders in the folder: {there or 'none'})"
            )
        return self
