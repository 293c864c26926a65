"""Rules of the package as a whole: floors, heavy imports, pages, faults."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from icefall_kd.data.gate import REASONS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "icefall_kd"
# From the bottom to the top: a room imports from itself and from rooms before it.
ROOMS = [
    *("core", "zipformer", "data", "transducer", "decoding", "teachers", "fields"),
    *("dataset", "pseudo", "corpora", "distill", "recognition", "training", "export"),
    *("recipes", "report", "doctor", "bin"),
]
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
# The modules that import a package that is heavy or often missing.
PLACES = {
    "k2": {
        "transducer/rnnt.py",
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
    places = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if pattern.search(path.read_text(encoding="utf-8"))
    }
    assert places <= PLACES[module]


def named_paths(text: str) -> set[str]:
    """Return the paths of the repository that a README names."""
    known = r"(?:egs|local|icefall_kd|test)/[\w./*{},<>-]+"
    paths = set(re.findall(known, text))
    return {p.rstrip(".,/") for p in paths if not re.search(r"[*{<]|/data|/exp", p)}


READMES = ["README.md", "icefall_kd/README.md", "egs/README.md"]
READMES += sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("egs/*/KD/README.md"))


@pytest.mark.parametrize("readme", READMES)
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


def test_the_reference_lists_every_module():
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    files = text.split("## Files")[1].split("\n## ")[0]
    for room in ROOMS:
        section = files.split(f"**{room}/**")[1].split("**")[0]
        listed = set(re.findall(r"^\| `([\w/]+\.py)`", section, re.MULTILINE))
        paths = (PACKAGE / room).rglob("*.py")
        modules = {p.relative_to(PACKAGE / room).as_posix() for p in paths}
        assert {m for m in modules if not m.endswith("__init__.py")} == listed


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms that a module imports from."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    return {n.split(".")[1] for n in names if n.startswith("icefall_kd.")}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_rooms_below_it(room):
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    for path in (PACKAGE / room).rglob("*.py"):
        assert imported_rooms(path) <= allowed, path


def test_every_room_is_on_a_floor():
    assert sorted(ROOMS) == sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py"))


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
    text = " ".join(cell for row in fault_rows() for cell in row)
    assert [reason for reason in REASONS if f"`{reason}`" not in text] == []
