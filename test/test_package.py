"""What holds for the package as a whole."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from icefall_kd.data.gate import REASONS

ROOT = Path(__file__).parent.parent
HEAVY = (
    "k2",
    "lhotse",
    "transformers",
    "ctranslate2",
    "faster_whisper",
    "kaldifeat",
    "onnx",
    "onnxruntime",
    "sherpa_onnx",
    "faiss",
    "multi_quantization",
)
# The one place of each import that few machines have or that takes long.
PLACES = {
    "k2": {
        "transducer/loss.py",
        "transducer/denominator.py",
        "decoding/fast_beam_search.py",
    },
    "ctranslate2": {"teachers/whisper_ct2.py"},
    "transformers": {"teachers/hugging_face_load.py"},
    "huggingface_hub": {"teachers/hugging_face_load.py"},
    "kaldifeat": {"data/features.py"},
    "matplotlib": {"fields/plot.py"},
    "onnxruntime": {"export/ort.py", "export/quantize.py"},
    "sherpa_onnx": {"export/sherpa.py"},
    "faiss": {"fields/codecs/pq.py"},
    "multi_quantization": {"fields/codecs/mvq.py"},
}


def test_the_package_imports_without_its_heavy_dependencies():
    block = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))"
    code = f"{block}; import icefall_kd, icefall_kd.core.config, icefall_kd.zipformer"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("module", sorted(PLACES))
def test_a_heavy_module_is_imported_in_one_place(module):
    pattern = re.compile(rf"^\s*(import|from) {module}\b", re.MULTILINE)
    package = ROOT / "icefall_kd"
    places = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if pattern.search(path.read_text(encoding="utf-8"))
    }
    assert places <= PLACES[module]


def named_paths(text: str) -> set[str]:
    """Return what a README names that looks like a path of the repository."""
    known = r"(?:egs|local|icefall_kd|test)/[\w./*{},-]+"
    paths = set(re.findall(known, text))
    return {p.rstrip(".,/") for p in paths if not re.search(r"[*{]|/data|/exp", p)}


READMES = [str(p.relative_to(ROOT)) for p in ROOT.glob("egs/*/KD/README.md")]


@pytest.mark.parametrize("readme", ["README.md", *sorted(READMES)])
def test_every_path_that_a_readme_names_exists(readme):
    paths = named_paths((ROOT / readme).read_text(encoding="utf-8"))
    assert paths
    folders = (ROOT, (ROOT / readme).parent)
    absent = [p for p in paths if not any((f / p).exists() for f in folders)]
    assert absent == []


def test_every_command_that_a_readme_names_exists():
    for readme in ROOT.glob("**/README.md"):
        for name in re.findall(r"icefall_kd\.bin\.(\w+)", readme.read_text()):
            assert (ROOT / "icefall_kd/bin" / f"{name}.py").exists(), (readme, name)


def test_the_readme_names_every_room():
    tree = (ROOT / "icefall_kd/README.md").read_text(encoding="utf-8")
    rooms = [p.parent.name for p in (ROOT / "icefall_kd").glob("*/__init__.py")]
    assert [room for room in rooms if f"{room}/" not in tree] == []


def fault_rows():
    """Return [fault, what happens, test] of every row of the tables of faults."""
    text = (ROOT / "test/FAULTS.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [r for r in rows if r[0] != "fault" and set(r[0]) != {"-"}]


def test_every_fault_has_a_test_that_exists():
    rows = fault_rows()
    assert len(rows) > 50
    for row in rows:
        fault, happens, test = row
        assert fault and happens
        match = re.fullmatch(r"`(test/[\w/]+\.py)::(test_\w+)`", test)
        assert match, row
        source = (ROOT / match[1]).read_text(encoding="utf-8")
        assert re.search(rf"^def {match[2]}\(", source, re.MULTILINE), test


def test_every_reason_of_the_data_gate_is_among_the_faults():
    told = " ".join(cell for row in fault_rows() for cell in row)
    assert [reason for reason in REASONS if f"`{reason}`" not in told] == []
