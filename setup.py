"""Package description; requirements.txt has the versions of the pinned stack."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "icefall_kd/__init__.py").read_text(), re.M
).group(1)
README = ROOT / "README.md"

INSTALL_REQUIRES = [
    "torch>=1.13.1",
    "numpy>=1.26",
    "lhotse>=1.32.1,<2",  # without the alphas of 2.0
    "lilcom",
    "urllib3",
    "soundfile",
    "av",
    "scipy",  # lhotse resamples with it if torchaudio is missing
    "kaldi-native-fbank",
    "sentencepiece",
    "kaldialign",
    "jinja2",
    "num2words",
    "tensorboard",
    "six",
    "docstring-parser>=0.15",  # for the help of jsonargparse
    "jsonargparse>=4.30",
    "pyyaml",
    "tqdm",
]

EXTRAS = {
    # fast_beam_search.  The index has k2 only for torch 1.13.1 and Python 3.10.
    "k2": ["k2>=1.23.4"],
    "teachers": ["ctranslate2>=4.0", "faster-whisper>=1.0"],
    # 4.48.3 is the last version for torch 1.13.1.
    "transformers": ["transformers>=4.48.3"],
    "export": ["onnx>=1.17", "protobuf", "onnxruntime>=1.17", "sherpa-onnx>=1.10"],
    # Graphs of words for the CTC head, bin.compile_hlg.
    "hlg": ["kaldifst>=1.7", "kaldi-decoder>=0.2", "kaldingram"],
    # Codecs pq and mvq, URLs of fields, plots of fields.
    "cache": ["faiss-cpu", "multi_quantization", "universal_pathlib", "matplotlib"],
    # A source package; local/install_kaldifeat.sh builds it.
    "kaldifeat": ["kaldifeat>=1.24"],
    "dev": ["pytest", "pytest-xdist", "hypothesis", "ruff"],
}

setup(
    name="icefall_kd",
    version=VERSION,
    description="Distil large speech models into small Zipformer transducers",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["icefall_kd", "icefall_kd.*"]),
    package_data={"icefall_kd.report": ["page.html", "page.css", "page.js"]},
    python_requires=">=3.9",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
)
