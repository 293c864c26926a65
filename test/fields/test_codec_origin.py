"""What becomes of a trained codec when an extraction is killed, repeated or changed."""

import sys
from collections import namedtuple

import numpy as np
import pytest
from shar_files import copy_shar

import icefall_kd.fields.planner as plan
from icefall_kd.dataset.dataset import make_loader
from icefall_kd.dataset.stream import open_stream
from icefall_kd.fields.codecs.storage import codec_path, load_codec, read_origin
from icefall_kd.fields.extract import extract
from icefall_kd.fields.format import info_path, load_field_info, state_path
from icefall_kd.fields.reader import load_field, open_shar
from icefall_kd.teachers import build_teacher

FIELD = "whisper_tiny_en"
TRAINED = f"training codec int8 of {FIELD}"


@pytest.fixture(scope="session")
def pq_shar(pristine_shar, tiny, tmp_path_factory):
    """The small Shar with the field in codec pq16; not to be written to."""
    folder = tmp_path_factory.mktemp("pq") / "shar"
    copy_shar(pristine_shar, folder)
    extract(folder, [tiny], codec="pq16", codec_frames=1000)
    return folder


@pytest.fixture
def told(caplog):
    """Return how often a codec was trained so far."""
    caplog.set_level("INFO")
    return lambda: caplog.text.count(TRAINED)


def interrupt(monkeypatch):
    """Let the next extraction end before its first shard, as a kill would."""

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("icefall_kd.fields.extract.write_shard", stop)


def test_a_field_of_16_bytes_a_frame_reaches_the_batches(pq_shar, extracted_shar):
    info = load_field_info(pq_shar, FIELD)
    assert info.codec == "pq16"
    codec = load_codec(pq_shar, info)
    (batch,) = make_loader(
        open_stream([pq_shar], fields=[FIELD]), codecs={FIELD: codec}, shuffle=False
    )
    exact = load_codec(extracted_shar, load_field_info(extracted_shar, FIELD))
    cuts = {cut.id: cut for cut in open_shar(extracted_shar, [FIELD])}
    found = batch["fields"][FIELD]
    a, b = [], []
    for cut, x, n in zip(batch["cuts"], found["x"].numpy(), found["lens"].tolist()):
        expected = load_field(cuts[cut.id], FIELD, exact)
        assert len(expected) == n and not x[n:].any()
        a.append((expected - info.mean) / info.std)
        b.append((x[:n] - info.mean) / info.std)
    a, b = np.concatenate(a), np.concatenate(b)
    assert 0.1 < np.linalg.norm(b - a) / np.linalg.norm(a) < 0.8


def test_a_second_folder_shares_the_codec(pq_shar, shar, tiny):
    infos, _ = extract(shar, [tiny], codec="pq16", codec_dir=pq_shar)
    assert infos[FIELD] == load_field_info(pq_shar, FIELD)  # the same cuts
    assert read_origin(shar, FIELD) == read_origin(pq_shar, FIELD)
    load_codec(shar, infos[FIELD])


def test_a_run_ended_between_its_shards_goes_on_with_its_codec(pq_shar, tmp_path, tiny):
    folder = copy_shar(pq_shar, tmp_path / "part")
    info_path(folder, FIELD).unlink()
    for shard in ("000001", "000003"):
        state_path(folder, FIELD, shard).unlink()
        (folder / f"{FIELD}.{shard}.tar").unlink()
    infos, report = extract(folder, [tiny], codec="pq16")
    assert (report.shards_done, report.shards_kept) == (2, 2)
    assert infos[FIELD] == load_field_info(pq_shar, FIELD)


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_before_the_first_shard_the_codec_is_not_trained_again(
    extracted, shar, tiny, monkeypatch, told, overwrite
):
    folder = extracted if overwrite else shar
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch)
        extract(folder, [tiny], codec="int8", overwrite=overwrite)
    assert told() == 1
    before = codec_path(folder, FIELD).read_bytes()
    infos, report = extract(folder, [tiny], codec="int8", overwrite=overwrite)
    assert told() == 1 and report.shards_done == 4
    assert codec_path(folder, FIELD).read_bytes() == before
    load_codec(folder, infos[FIELD])
    _, report = extract(folder, [tiny], codec="int8", overwrite=overwrite)
    assert told() == 1 and report.shards_kept == 4


def test_overwrite_trains_again_what_was_trained_otherwise(shar, tiny, told):
    extract(shar, [tiny], codec="int8", codec_frames=500)
    before = codec_path(shar, FIELD).read_bytes()
    extract(shar, [tiny], codec="int8", codec_frames=2000)
    assert told() == 1
    _, report = extract(shar, [tiny], codec="int8", codec_frames=2000, overwrite=True)
    assert told() == 2 and report.shards_done == 4
    assert codec_path(shar, FIELD).read_bytes() != before


def test_overwrite_replaces_a_damaged_codec(shar, tiny, told):
    extract(shar, [tiny], codec="int8")
    path = codec_path(shar, FIELD)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="codec.npz: damaged"):
        extract(shar, [tiny], codec="int8")
    infos, _ = extract(shar, [tiny], codec="int8", overwrite=True)
    load_codec(shar, infos[FIELD])


@pytest.mark.parametrize("shared", [False, True])
def test_a_codec_left_by_another_teacher_does_not_serve(
    shar, pristine_shar, tmp_path, tiny, tiny_dir, monkeypatch, told, shared
):
    """A killed run of one teacher must not quantise what the next one says."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch)
        extract(shar, [tiny], codec="int8")
    other = build_teacher(FIELD, tiny_dir, context=0.5, num_threads=1)
    folder = copy_shar(pristine_shar, tmp_path / "second") if shared else shar
    with pytest.raises(ValueError, match="another teacher's output: context is 1.0"):
        extract(folder, [other], codec="int8", codec_dir=shar)
    assert told() == 1
    if not shared:
        extract(shar, [other], codec="int8", overwrite=True)
        assert told() == 2


def test_no_codec_is_trained_for_a_field_that_stays_as_it_is(extracted, tiny, told):
    with pytest.raises(ValueError, match="has codec 'fp16', not 'int8'"):
        extract(extracted, [tiny], codec="int8")
    assert told() == 0 and not codec_path(extracted, FIELD).exists()


def test_a_lost_codec_is_told(shar, tiny, told):
    extract(shar, [tiny], codec="int8")
    codec_path(shar, FIELD).unlink()
    with pytest.raises(FileNotFoundError, match="codec.npz is missing"):
        extract(shar, [tiny], codec="int8")
    assert told() == 1


def test_a_full_disk_leaves_the_old_codec_and_trains_no_new_one(
    shar, tiny, tiny_dir, monkeypatch, told
):
    extract(shar, [tiny], codec="int8")
    other = build_teacher(FIELD, tiny_dir, context=0.5, num_threads=1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 9))
    with pytest.raises(OSError, match="MB needed"):
        extract(shar, [other], codec="int8", overwrite=True)
    assert told() == 1
    info = load_field_info(shar, FIELD)
    codec = load_codec(shar, info)
    for cut in open_shar(shar, [FIELD]):
        assert np.isfinite(load_field(cut, FIELD, codec)).all()


def test_a_package_that_is_absent_is_told_before_the_teacher_is_heard(
    shar, tiny, monkeypatch
):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr("icefall_kd.fields.codecs.storage.sample_frames", None)
    with pytest.raises(ValueError, match="pip install faiss-cpu"):
        extract(shar, [tiny], codec="pq16")
