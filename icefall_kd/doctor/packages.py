"""The packages that the doctor looks at, and the pins that it recommends."""

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Package:
    """One package.

    Attributes:
      module: what is imported.
      dist: its name in the package index.
      pin: the version of requirements.txt, for Python 3.10 and torch 1.13.1; None for
        what only some users need.
      purpose: what fails without it.
      needs: modules whose fault would be this one's too: it is judged after them.
      torch_1_only: with torch 2 it may be absent.
    """

    module: str
    dist: str
    pin: Optional[str]
    purpose: str
    needs: tuple[str, ...] = ()
    torch_1_only: bool = False

    @property
    def required(self) -> bool:
        """Whether the recipe cannot run without it."""
        return self.pin is not None


_TORCH = ("numpy", "torch")

# Imported in this order, in one process: what others stand on comes first.
PACKAGES: dict[str, Package] = {
    p.module: p
    for p in [
        Package("numpy", "numpy", "1.26.4", "everything"),
        Package("torch", "torch", "1.13.1", "everything", ("numpy",)),
        Package("k2", "k2", "1.23.4", "the transducer loss", _TORCH),
        Package("torchaudio", "torchaudio", "0.13.1", "audio", _TORCH, True),
        Package("lilcom", "lilcom", "1.8.2", "lhotse", ("numpy",)),
        Package("urllib3", "urllib3", "2.8.0", "lhotse"),
        Package("soundfile", "soundfile", "0.14.0", "audio files", ("numpy",)),
        Package(
            "lhotse",
            "lhotse",
            "1.32.1",
            "data",
            (*_TORCH, "torchaudio", "lilcom", "urllib3", "soundfile"),
        ),
        Package("av", "av", "17.1.0", "audio files"),
        Package("sentencepiece", "sentencepiece", "0.2.3", "tokens"),
        Package(
            "kaldi_native_fbank",
            "kaldi-native-fbank",
            "1.22.5",
            "features as deployed",
            ("numpy",),
        ),
        Package("kaldialign", "kaldialign", "0.12.0", "scoring"),
        Package("num2words", "num2words", "0.5.14", "text normalisation"),
        Package("docstring_parser", "docstring-parser", "0.18.0", "help of options"),
        Package("jsonargparse", "jsonargparse", "4.53.0", "configuration"),
        Package("yaml", "pyyaml", "6.0.3", "configuration"),
        Package("tqdm", "tqdm", "4.70.1", "progress bars"),
        Package("google.protobuf", "protobuf", "4.25.9", "ONNX, TensorBoard"),
        Package("six", "six", "1.17.0", "TensorBoard with torch 1.13", (), True),
        Package(
            "torch.utils.tensorboard",
            "tensorboard",
            "2.20.0",
            "training curves",
            (*_TORCH, "six", "google.protobuf"),
        ),
        Package("ctranslate2", "ctranslate2", "4.8.5", "Whisper teachers", ("numpy",)),
        Package("onnx", "onnx", "1.17.0", "export", ("numpy", "google.protobuf")),
        Package("onnxruntime", "onnxruntime", "1.23.2", "checked export", ("numpy",)),
        Package("sherpa_onnx", "sherpa-onnx", "2.0.1", "deployment", ("numpy",)),
        Package(
            "faster_whisper",
            "faster-whisper",
            "1.2.1",
            "Whisper teachers",
            ("numpy", "ctranslate2", "onnxruntime", "av"),
        ),
        Package("kaldifeat", "kaldifeat", None, "features on CUDA", _TORCH),
        Package("transformers", "transformers", None, "Hugging Face teachers", _TORCH),
        Package("faiss", "faiss-cpu", None, "codec pq", ("numpy",)),
        Package("multi_quantization", "multi_quantization", None, "codec mvq", _TORCH),
        Package("upath", "universal_pathlib", None, "fields behind a URL"),
        Package("matplotlib", "matplotlib", None, "plots of fields", ("numpy",)),
    ]
}
