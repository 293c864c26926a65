"""List the packages to check, and import each in a child process.

A broken package may abort the process that imports it.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional


@dataclass(frozen=True)
class Package:
    """A package to check.

    Attributes:
      module: name of the module to import.
      dist: name in the package index.
      pin: version in requirements.txt, for Python 3.10 and torch 1.13.1; None for
        optional packages.
      purpose: feature that needs it.
      needs: modules that it imports; if one of them has a problem, its import is not
        checked.
      torch_1_only: whether it is optional with torch 2.
    """

    module: str
    dist: str
    pin: Optional[str]
    purpose: str
    needs: tuple[str, ...] = ()
    torch_1_only: bool = False

    @property
    def is_required(self) -> bool:
        """Whether the recipes need it."""
        return self.pin is not None


_TORCH = ("numpy", "torch")

# The order of the imports in one process: dependencies first.
PACKAGES: dict[str, Package] = {
    p.module: p
    for p in [
        Package("numpy", "numpy", "1.26.4", "everything"),
        Package("torch", "torch", "1.13.1", "everything", ("numpy",)),
        Package("k2", "k2", "1.23.4", "fast_beam_search", _TORCH, True),
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
            "fbank as in sherpa-onnx",
            ("numpy",),
        ),
        Package("kaldialign", "kaldialign", "0.12.0", "scoring"),
        Package("jinja2", "jinja2", "3.1.6", "report page"),
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
        Package("onnxruntime", "onnxruntime", "1.23.2", "check of exports", ("numpy",)),
        Package("sherpa_onnx", "sherpa-onnx", "2.0.1", "deployment", ("numpy",)),
        Package("kaldifst", "kaldifst", "1.8.3", "graphs of words"),
        Package(
            "kaldi_decoder",
            "kaldi-decoder",
            "0.3.2",
            "decoding with graphs of words",
            ("numpy", "kaldifst"),
        ),
        Package("kaldingram", "kaldingram", "0.1.2", "n-grams of words", ("tqdm",)),
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
        Package("upath", "universal_pathlib", None, "fields at a URL"),
        Package("matplotlib", "matplotlib", None, "plots of fields", ("numpy",)),
    ]
}

_MARK = "@@finding "  # start of our lines; packages may print during their import
_TIMEOUT = 120  # seconds for all imports of a child process


@dataclass
class Finding:
    """The result of importing one package.

    Attributes:
      version: installed version without a local part such as "+cu117"; None if absent.
      error: reason of a failed import, in one line; None without a failure.
      info: further properties.  torch: ``cuda`` and ``gpu``, with a GPU also ``arch``
        and ``arch_list``; k2: ``with_cuda``.
    """

    version: Optional[str] = None
    error: Optional[str] = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def is_installed(self) -> bool:
        """Whether it is installed, working or not."""
        return self.version is not None

    @property
    def is_working(self) -> bool:
        """Whether it is installed and can be imported."""
        return self.is_installed and self.error is None


def import_packages(modules: Iterable[str]) -> dict[str, Finding]:
    """Import modules one after the other; after a crash, continue in another process.

    Args:
      modules: keys of PACKAGES.
    Returns:
      module -> finding, for each module.
    """
    findings: dict[str, Finding] = {}
    left = list(modules)
    while left:
        findings.update(_run_child(left))
        left = [m for m in left if m not in findings]
    return findings


def _run_child(modules: Iterable[str]) -> dict[str, Finding]:
    """Import modules in one child process; return the findings until it ends."""
    modules = list(modules)
    command = [sys.executable, "-m", __name__, *modules]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT)
        output, end = done.stdout, _describe_exit(done.returncode, done.stderr)
    except subprocess.TimeoutExpired as e:
        output, end = e.stdout or b"", f"does not finish its import in {_TIMEOUT} s"
    findings = {}
    for line in output.decode(errors="replace").splitlines():
        if line.startswith(_MARK):
            name, values = json.loads(line[len(_MARK) :])
            findings[name] = Finding(**values)
    for name in modules:  # the first one without a finding ended the child
        if name not in findings:
            findings[name] = Finding(version=installed_version(name), error=end)
            break
    return findings


def _describe_exit(status: int, stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    last = f": {lines[-1]}" if lines else ""
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return f"ends the process on import ({how}){last}"


def installed_version(name: str) -> Optional[str]:
    """Return the version in a package's metadata, without importing it."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version(PACKAGES[name].dist)
        return version.split("+")[0] if version else None
    return None


def k2_built_for(key: str) -> Optional[str]:
    """Return the version that k2 was built for, without importing k2.

    Args:
      key: "torch", or "torch_cuda" for the version of CUDA.
    Returns:
      version such as "1.13.1+cu117", "11.7" or ""; None if unknown.
    """
    with contextlib.suppress(ImportError, ValueError, OSError):
        spec = importlib.util.find_spec("k2")
        for folder in (spec.submodule_search_locations or []) if spec else []:
            text = Path(folder, "torch_version.py").read_text()
            found = re.search(rf'^k2_{key}_version = "(.*)"', text, re.M)
            return found.group(1) if found else None
    return None


def _torch_info(torch: Any) -> dict[str, Any]:
    info = {"cuda": torch.version.cuda, "gpu": None}
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(0)
        info.update(
            gpu=torch.cuda.get_device_name(0),
            arch=f"sm_{major}{minor}",
            arch_list=torch.cuda.get_arch_list(),
        )
    return info


def _info(name: str, module: Any) -> dict[str, Any]:
    if name == "torch":
        return _torch_info(module)
    if name == "k2":
        return {"with_cuda": bool(getattr(module, "with_cuda", False))}
    return {}


def import_package(name: str) -> Finding:
    """Import one package in this process."""
    finding = Finding(version=installed_version(name))
    try:
        module = importlib.import_module(name)
        # A module earlier on the path may hide the installed one.
        imported = str(getattr(module, "__version__", "")).split("+")[0]
        if imported[:1].isdigit():
            finding.version = imported
        finding.version = finding.version or "unknown"
        with contextlib.suppress(AttributeError):
            finding.info = _info(name, module)
    except ModuleNotFoundError as e:
        if finding.version is not None or e.name != name.split(".")[0]:
            finding.error = f"{type(e).__name__}: {e}"
    except Exception as e:  # an import may raise anything
        reason = str(e).strip().replace("\n", "; ")
        finding.error = f"{type(e).__name__}: {reason}"
    return finding


def main() -> None:
    """Import the modules of the arguments; print a line of JSON for each."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core dumps of broken packages
    for name in sys.argv[1:]:
        print(_MARK + json.dumps([name, vars(import_package(name))]), flush=True)


if __name__ == "__main__":
    main()
