"""Hashes and reuse of results."""

import gzip
import json
import shutil
import subprocess
import sys

import pytest

from icefall_kd.data.shar import write_shar
from icefall_kd.recognition.result_cache import (
    FOLDERS,
    cached_result,
    code_sha256,
    set_sha256,
)


@pytest.fixture
def shar(cuts, tmp_path):
    write_shar(cuts[:2], tmp_path / "shar")
    return tmp_path / "shar"


def change_text(shar):
    path = shar / "cuts.000000.jsonl.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    path.write_bytes(gzip.compress(text.replace('"text": "', '"text": "NOT ').encode()))


def change_audio(shar):
    path = shar / "recording.000000.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # a tar of the same size
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("change", [change_text, change_audio])
def test_another_text_or_audio_changes_the_hash(shar, change):
    before = set_sha256(shar)
    change(shar)
    assert set_sha256(shar) != before


def test_copy_of_a_set_has_the_same_hash(shar, cuts, tmp_path):
    path = shar / "cuts.000000.jsonl.gz"
    before = set_sha256(shar)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1, mtime=1))
    assert set_sha256(shutil.copytree(shar, tmp_path / "copy")) == before


def test_code_changes_the_hash_but_comments_do_not(tmp_path):
    def digest(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        code_sha256.cache_clear()
        return code_sha256(tmp_path)

    first = digest("decoding/a.py", "def f(x):\n    return x\n")
    commented = 'def f(x):\n    """Return x."""\n    return x  # unchanged\n'
    assert digest("decoding/a.py", commented) == first
    assert digest("report/page.py", "x = 1\n") == first
    assert digest("transducer/checkpoint.py", "x = 1\n") != first
    assert digest("decoding/a.py", "def f(x):\n    return -x\n") != first
    code_sha256.cache_clear()


def test_result_is_reused_while_its_inputs_are_unchanged(tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "result-a-b.json"
    facts = {"set_sha256": "1", "beam": 4, "alignment_sha256": "7", "parameters": 5}
    assert cached_result(path, facts) is None
    path.write_text(json.dumps({**facts, "recogs": "recogs-a-b.txt"}))
    assert cached_result(path, facts) is None  # its recogs are missing
    (tmp_path / "recogs-a-b.txt").write_text("")
    assert cached_result(path, facts) is not None
    assert cached_result(path, facts, force=True) is None
    assert cached_result(path, {**facts, "parameters": 6}) is not None
    fewer = {k: v for k, v in facts.items() if k != "alignment_sha256"}
    assert cached_result(path, fewer) is not None  # the result has more entries
    for name, value in (("set_sha256", "2"), ("beam", 8), ("new_option", None)):
        caplog.clear()
        assert cached_result(path, {**facts, name: value}) is None
        assert f"changed: {name}" in caplog.text


def test_code_hash_covers_all_modules_of_decoding():
    code = (
        "import sys, icefall_kd.export.transcribe, icefall_kd.fields.codecs.storage, "
        "icefall_kd.fields.reader, icefall_kd.recognition.fields, "
        "icefall_kd.recognition.forced_alignment; "
        "print(*(m.split('.')[1] for m in sys.modules if m.startswith('icefall_kd.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert set(done.stdout.split()) - {"teachers"} == set(FOLDERS)  # only its protocol
