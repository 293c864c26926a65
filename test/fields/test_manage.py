"""Remove and copy fields; keep all other files."""

import gzip
import os
import shutil
import signal

import pytest
from damage import flip_a_bit
from loudness import Loudness
from shar_files import copy_shar, digest, shar_files

import icefall_kd.fields.manage as manage
from icefall_kd.core.files import as_path, sha256_file
from icefall_kd.fields.codecs.storage import codec_path
from icefall_kd.fields.extract import extract
from icefall_kd.fields.format import field_dir, info_path
from icefall_kd.fields.manage import copy_field, remove_field
from icefall_kd.fields.reader import check_field, open_shar
from icefall_kd.fields.summary import summarize_fields
from icefall_kd.fields.verify import verify_field

FIELD = "whisper_tiny_en"


def test_removal_keeps_fields_of_similar_names(extracted):
    for other in ("whisper", "whisper_tiny"):  # similar names
        field_dir(extracted, other).mkdir()
        for path in shar_files(extracted):
            if path.name.startswith(f"{FIELD}."):
                copy = str(path.relative_to(extracted.parent)).replace(FIELD, other)
                shutil.copy(path, extracted.parent / copy)
    for name in ("whisper.txt", "whisper.gate.json"):
        (extracted / name).touch()
    (field_dir(extracted, "whisper_tiny") / ".7.partial.whisper_tiny.0.tar").touch()
    (field_dir(extracted, "whisper") / ".99.partial.whisper.000001.tar").touch()
    codec_path(extracted, "whisper").touch()
    kept = digest(extracted)
    gone = remove_field(extracted, "whisper")
    assert gone[0].name == "whisper.json", "the description marks a complete field"
    names = {p.name for p in gone}
    assert len(names) == 1 + 2 * 4 + 2
    assert all(n.startswith(("whisper.", ".99.partial.whisper.")) for n in names)
    assert digest(extracted) == {n: d for n, d in kept.items() if n not in names}
    assert not field_dir(extracted, "whisper").exists()


@pytest.mark.parametrize("field", ["cuts", "recording", "features"])
def test_only_fields_are_removed(extracted, field):
    before = digest(extracted)
    with pytest.raises(ValueError, match="cannot name a field"):
        remove_field(extracted, field)
    with pytest.raises(FileNotFoundError, match=f"'whisper' does not exist.*{FIELD}"):
        remove_field(extracted, "whisper")
    assert digest(extracted) == before


def test_tars_of_another_program_are_not_removed(extracted):
    path = extracted / "target.000000.tar"
    path.write_bytes((extracted / f"{FIELD}.000000.tar").read_bytes())
    with pytest.raises(ValueError, match="'target' has no description"):
        remove_field(extracted, "target")
    assert path.is_file()


def test_copy_equals_the_source_file_by_file(extracted, shar):
    seen = []
    copied = copy_field(extracted, shar, FIELD, progress=lambda *x: seen.append(x))
    assert (copied.shards_done, copied.shards_kept) == (4, 0)
    assert seen[-1][0] == seen[-1][1] == sum(s["bytes"] for s in copied.info.shards)
    assert digest(shar) == digest(extracted)
    again = copy_field(extracted, shar, FIELD)
    assert (again.shards_done, again.shards_kept) == (0, 4)
    assert digest(shar) == digest(extracted)


def test_codec_is_copied_with_its_field(shar, pristine_shar, tmp_path):
    extract(shar, [Loudness()], codec="int8")
    target = tmp_path / "target"
    copy_shar(pristine_shar, target)
    copy_field(shar, target, "loudness")
    assert digest(target, "loudness*") == digest(shar, "loudness*")
    assert list(verify_field(target, "loudness")) == []
    codec_path(target, "loudness").unlink()
    copy_field(shar, target, "loudness")
    assert digest(target, "loudness*") == digest(shar, "loudness*")


def test_copy_accepts_cuts_with_another_compression(extracted, shar):
    path = shar / "cuts.000001.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    info = copy_field(extracted, shar, FIELD).info
    assert info.shards[1]["cuts_sha256"] == sha256_file(path)
    assert list(verify_field(shar, FIELD)) == []


@pytest.mark.parametrize("change", ["renamed", "fewer shards"])
def test_copy_to_other_cuts_writes_nothing(extracted, shar, change):
    path = shar / "cuts.000003.jsonl.gz"
    if change == "renamed":
        text = gzip.decompress(path.read_bytes()).decode()
        path.write_bytes(gzip.compress(text.replace("asterisk", "other").encode()))
        problem = "missing: 3, for example other-"
    else:
        path.unlink()
        problem = "only one folder has: 1, for example 000003"
    before = digest(shar)
    with pytest.raises(ValueError, match=problem):
        copy_field(extracted, shar, FIELD)
    assert digest(shar) == before


def test_source_that_does_not_join_its_cuts_is_refused(extracted, shar):
    (extracted / "cuts.000003.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(ValueError, match="does not join its cuts"):
        copy_field(extracted, shar, FIELD)
    with pytest.raises(ValueError, match="are one folder"):
        copy_field(extracted, extracted, FIELD)


def test_damaged_shard_is_not_copied(extracted, shar):
    flip_a_bit(extracted / f"{FIELD}.000001.tar")
    with pytest.raises(ValueError, match=f"{FIELD}.000001.tar: damaged, another SHA"):
        copy_field(extracted, shar, FIELD)
    names = {p.name for p in shar_files(shar) if FIELD in p.name}
    assert names == {f"{FIELD}.000000.tar", f"{FIELD}.000000.json"}


def test_other_fingerprint_is_replaced_only_with_overwrite(shar, tmp_path):
    target = tmp_path / "target"
    copy_shar(shar, target)
    extract(shar, [Loudness(version=1)], codec="int8")
    extract(target, [Loudness(version=2)])
    before = digest(target)
    with pytest.raises(ValueError, match="version is 2, wanted 1.*--overwrite"):
        copy_field(shar, target, "loudness")
    assert digest(target) == before
    copy_field(shar, target, "loudness", overwrite=True)
    assert digest(target, "loudness*") == digest(shar, "loudness*")
    assert digest(target, "loud_ctc*") != digest(shar, "loud_ctc*")  # not requested
    back = copy_field(target, shar, "loud_ctc", overwrite=True)
    assert back.shards_done == 4 and not codec_path(shar, "loud_ctc").exists()


def test_copy_to_a_full_disk_writes_nothing(extracted, shar, monkeypatch):
    before = digest(shar)
    usage = shutil.disk_usage(shar)._replace(free=10**5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="0.1 MB free"):
        copy_field(extracted, shar, FIELD)
    assert digest(shar) == before


def killed(source, target, after, within):
    """Copy in a child that gets SIGKILL after some shards, or during the next one."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        return
    copyfileobj, calls = shutil.copyfileobj, []

    def copy(reading, writing, length):
        calls.append(1)
        if within and len(calls) > after:
            writing.write(reading.read(5000))
            writing.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        copyfileobj(reading, writing, length)
        if not within and len(calls) > after:
            writing.flush()  # complete, but without a state
            os.kill(os.getpid(), signal.SIGKILL)

    manage.shutil.copyfileobj = copy
    copy_field(source, target, FIELD)
    os._exit(0)


@pytest.mark.parametrize("within", [True, False])
def test_killed_copy_resumes_at_its_shard(extracted, shar, within):
    for after in (0, 1):  # each copy keeps the shards of the previous one
        killed(extracted, shar, after, within)
        (summary,) = summarize_fields(shar)
        assert (summary.state, summary.shards_done) == ("unfinished", after)
        assert "1 temporary files" in summary.note
    with pytest.raises(FileNotFoundError, match="is unfinished"):
        open_shar(shar, [FIELD])
    copied = copy_field(extracted, shar, FIELD)
    assert (copied.shards_done, copied.shards_kept) == (3, 1)
    assert digest(shar) == digest(extracted)


def test_copy_killed_before_the_description_keeps_intact_shards(extracted, shar):
    copy_field(extracted, shar, FIELD)
    info_path(shar, FIELD).unlink()
    flip_a_bit(shar / f"{FIELD}.000002.tar")  # and a shard was damaged meanwhile
    copied = copy_field(extracted, shar, FIELD)
    assert (copied.shards_done, copied.shards_kept) == (1, 3)
    assert digest(shar) == digest(extracted)


def test_field_is_copied_to_a_url_and_back(extracted, shar):
    store = "memory://fields/shar"
    for path in shar.iterdir():
        (as_path(store) / path.name).write_bytes(path.read_bytes())
    copy_field(extracted, store, FIELD)
    assert check_field(store, FIELD).num_cuts == 18
    assert list(verify_field(store, FIELD)) == []
    (summary,) = summarize_fields(store)
    assert (summary.state, summary.shards_done) == ("complete", 4)
    copy_field(store, shar, FIELD)
    assert digest(shar) == digest(extracted)
    remove_field(store, FIELD)
    assert summarize_fields(store) == []
    assert {p.name for p in as_path(store).iterdir()} == {
        p.name for p in shar.iterdir() if FIELD not in p.name
    }
