"""The command bin.doctor, on this environment and on broken ones."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import pytest
from pinned import pinned_only

ROOT = Path(__file__).resolve().parents[2]
UNDEFINED = "undefined symbol: _ZN3c106detail14torchCheckFail"


@dataclass(frozen=True)
class Overlay:
    """A package that hides the installed one.

    Attributes:
      module: import name.
      dist: name in the package index.
      version: version in its metadata; None: the installed metadata.
      code: content of __init__.py.
      remedy: text that the only remedy contains.
      files: further files, name -> text.
    """

    module: str
    dist: str
    version: Optional[str]
    code: str
    remedy: str
    files: tuple = ()


def fails(message: str) -> str:
    return f"raise ImportError({message!r})\n"


TORCH_PAIR = '"torch==1.13.1" "torchaudio==0.13.1"'
K2_AGAIN = "--force-reinstall --no-deps -r local/k2_wheel.txt"
OLD_K2 = (("torch_version.py", 'k2_torch_version = "1.12.1"\n'),)
GPU_TORCH = """
__version__ = "1.13.1"
class version: cuda = "11.7"
class cuda:
    is_available = staticmethod(lambda: True)
    get_device_capability = staticmethod(lambda i: (12, 0))
    get_device_name = staticmethod(lambda i: "A new GPU")
    get_arch_list = staticmethod(lambda: ["sm_70", "sm_80", "sm_86"])
"""

MISMATCHES = {
    "newer_torch": Overlay("torch", "torch", "2.0.1", "", TORCH_PAIR),
    "torch_seen_only_by_import": Overlay(
        "torch", "torch", None, "__version__ = '2.1.0+cpu'", TORCH_PAIR
    ),
    "gpu_newer_than_torch": Overlay("torch", "torch", None, GPU_TORCH, "k2/cuda.html"),
    "k2_for_another_torch": Overlay("k2", "k2", "1.22.0", "", K2_AGAIN, OLD_K2),
    "k2_with_undefined_symbol": Overlay("k2", "k2", None, fails(UNDEFINED), K2_AGAIN),
    "k2_that_aborts": Overlay("k2", "k2", None, "import os; os.abort()", K2_AGAIN),
    "numpy_2": Overlay("numpy", "numpy", "2.1.0", "", '"numpy==1.26.4"'),
    "torchaudio_of_another_torch": Overlay(
        "torchaudio", "torchaudio", "2.1.0", "", '--no-deps "torchaudio==0.13.1"'
    ),
    "old_lhotse": Overlay("lhotse", "lhotse", "1.20.0", "", '"lhotse==1.32.1"'),
    "new_lhotse": Overlay("lhotse", "lhotse", "1.33.0", "", '"lhotse==1.32.1"'),
    "protobuf_for_later_onnx": Overlay(
        "google.protobuf", "protobuf", "5.29.0", "", '"protobuf==4.25.9"'
    ),
    "sentencepiece_broken": Overlay(
        "sentencepiece", "sentencepiece", None, fails(UNDEFINED), '"sentencepiece=='
    ),
    "ctranslate2_that_kills": Overlay(
        "ctranslate2",
        "ctranslate2",
        None,
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        '"ctranslate2==',
    ),
}


def run_doctor(path: Optional[Path], *args: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": f"{path}:{ROOT}" if path else str(ROOT)}
    command = [sys.executable, "-m", "icefall_kd.bin.doctor", *args]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)


def write_overlay(overlay: Overlay, folder: Path) -> Path:
    package = folder / overlay.module.replace(".", "/")
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(overlay.code)
    for name, text in overlay.files:
        (package / name).write_text(text)
    if overlay.version is not None:
        info = folder / f"{overlay.dist}-{overlay.version}.dist-info"
        info.mkdir()
        metadata = f"Name: {overlay.dist}\nVersion: {overlay.version}\n"
        (info / "METADATA").write_text("Metadata-Version: 2.1\n" + metadata)
    return folder


@pytest.fixture(scope="module")
def overlay_runs(tmp_path_factory):
    """Return the run of the doctor on each mismatch, two at once."""
    root = tmp_path_factory.mktemp("overlays")
    with ThreadPoolExecutor(2) as executor:
        runs = {
            name: executor.submit(run_doctor, write_overlay(overlay, root / name))
            for name, overlay in MISMATCHES.items()
        }
        return {name: run.result() for name, run in runs.items()}


def test_this_environment_has_no_problems():
    done = run_doctor(None, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["problems"]) == (0, [])
    assert report["packages"]["torch"]["version"]
    assert "cuda" in report["packages"]["torch"]["info"]


@pytest.mark.slow
@pinned_only
@pytest.mark.parametrize("name", MISMATCHES)
def test_a_mismatch_has_one_remedy_and_a_failing_status(name, overlay_runs):
    done = overlay_runs[name]
    remedies = [x for x in done.stdout.splitlines() if x.startswith("remedy: ")]
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(remedies) == 1, done.stdout
    assert MISMATCHES[name].remedy in remedies[0]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pinned_only
def test_a_crash_leaves_the_packages_after_it_reported(overlay_runs):
    table = overlay_runs["k2_that_aborts"].stdout
    assert "signal 6" in table
    assert any(x.split()[::2][:2] == ["av", "ok"] for x in table.splitlines())


def test_an_empty_environment_is_reported(tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [bare / "bin/python", "-m", "icefall_kd.bin.doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert done.stdout.count("remedy:") == 1
    assert "bash local/install.sh" in done.stdout
