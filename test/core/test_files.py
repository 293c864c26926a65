"""Atomic writes, locks of folders and encodings of text files."""

import subprocess
import sys

import pytest

from icefall_kd.core.files import (
    lock_folder,
    read_json,
    read_text,
    read_yaml,
    remove_temporary_files,
    write_atomically,
)
from icefall_kd.corpora.manifests import read_id_lists
from icefall_kd.recognition.ctm import read_ctm

HOLD = """
import sys
from icefall_kd.core.files import lock_folder
with lock_folder(sys.argv[1]):
    sys.stdout.write("held\\n")
    sys.stdout.flush()
    sys.stdin.read()
"""


def test_a_locked_folder_is_refused_until_its_process_ends(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="another process uses this folder"):
        with lock_folder(tmp_path):
            pass
    other.kill()
    other.wait()
    with lock_folder(tmp_path):
        pass


def test_temporary_files_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / "a.pt").write_text("old")
    with write_atomically(tmp_path / "a.pt") as temporary:
        temporary.write_text("half")
        remove_temporary_files(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
        temporary.write_text("new")
    assert (tmp_path / "a.pt").read_text() == "new"


BOM = "\ufeff"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_byte_order_marks_and_line_ends_do_not_matter(tmp_path, end):
    def write(name, text):
        path = tmp_path / name
        path.write_bytes((BOM + text.replace("\n", end)).encode())
        return path

    assert read_text(write("a.txt", "Ä\nB\n")) == "Ä\nB\n"
    assert read_yaml(write("a.yaml", "a: 1\nb: 2\n")) == {"a": 1, "b": 2}
    assert read_json(write("a.json", '{"a":\n1}')) == {"a": 1}
    times = read_ctm(write("a.ctm", "x 0 0.5 0.2 ONE\nx 0 0.9 0.1 TWO\n"))
    assert [item.symbol for item in times["x"]] == ["ONE", "TWO"]
    for split in ("train", "dev", "test"):
        write(f"{split}.txt", f"{split}-1\n{split}-2\n")
    assert read_id_lists(tmp_path)["train"] == ["train-1", "train-2"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "encoding, line", [("utf-16", 1), ("utf-16-le", 1), ("latin-1", 3)]
)
def test_text_in_another_encoding_is_refused_with_file_and_line(
    tmp_path, encoding, line, end
):
    path = tmp_path / "train.txt"
    path.write_bytes(f"a: 1{end}b: 2{end}c: Ä{end}".encode(encoding))
    message = f"train.txt:{line}: not UTF-8 text.*iconv"
    for read in (read_text, read_yaml, read_json):
        with pytest.raises(ValueError, match=message):
            read(path)
    with pytest.raises(ValueError, match=r"train.txt:\d: not "):
        read_ctm(path)
    for split in ("dev", "test"):
        (tmp_path / f"{split}.txt").write_text("")
    with pytest.raises(ValueError, match=message):
        read_id_lists(tmp_path)
