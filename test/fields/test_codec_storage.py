"""Stored codecs, and their reuse by repeated, killed or changed extractions."""

import sys
from collections import namedtuple

import numpy as np
import pytest
from shar_files import copy_shar

from icefall_kd.dataset.dataset import Loader
from icefall_kd.dataset.stream import open_stream
from icefall_kd.fields import planner
from icefall_kd.fields.codecs import train_codec
from icefall_kd.fields.codecs.storage import (
    codec_path,
    load_codec,
    read_codec,
    read_origin,
    save_codec,
)
from icefall_kd.fields.extract import extract
from icefall_kd.fields.format import info_path, load_field_info, state_path
from icefall_kd.fields.reader import load_field, open_shar
from icefall_kd.teachers import build_teacher

FIELD = "whisper_tiny_en"


@pytest.fixture(scope="session")
def pq_shar(pristine_shar, tiny, tmp_path_factory):
    """The small Shar with the field in codec pq16; tests must not change it."""
    folder = tmp_path_factory.mktemp("pq") / "shar"
    copy_shar(pristine_shar, folder)
    extract(folder, [tiny], codec="pq16", codec_frames=1000)
    return folder


@pytest.fixture
def other_teacher(tiny_dir):
    """The same field with another fingerprint."""
    return build_teacher(FIELD, tiny_dir, context=0.5, num_threads=1)


@pytest.fixture
def num_trainings(caplog):
    """Return a function that counts the trainings of a codec in this test."""
    caplog.set_level("INFO")
    return lambda: caplog.text.count(f"training codec int8 of {FIELD}")


def extract_and_interrupt(monkeypatch, *arguments, **options):
    """Run an extraction that is interrupted before its first shard."""

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("icefall_kd.fields.extract.write_shard", stop)
        extract(*arguments, **options)


def fill_disk(monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 9)
    monkeypatch.setattr(planner.shutil, "disk_usage", lambda path: usage)


def random_codec(dim):
    frames = np.random.default_rng(0).normal(size=(50, dim)).astype(np.float32)
    return train_codec("int8", frames)


def test_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="x.codec.npz"):
        read_codec(tmp_path, "x")
    save_codec(random_codec(4), tmp_path, "x")
    path = codec_path(tmp_path, "x")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="x.codec.npz: damaged"):
        read_codec(tmp_path, "x")


def test_codec_of_another_training_is_refused(extracted, tiny):
    infos, _ = extract(extracted, [tiny], codec="int8", overwrite=True)
    load_codec(extracted, infos[FIELD])
    save_codec(random_codec(384), extracted, FIELD)
    with pytest.raises(ValueError, match=f"codec.npz is not .*'{FIELD}'"):
        load_codec(extracted, infos[FIELD])


def test_quantised_field_reaches_the_batches(pq_shar, extracted_shar):
    info = load_field_info(pq_shar, FIELD)
    assert info.codec == "pq16"
    codec = load_codec(pq_shar, info)
    (batch,) = Loader(
        open_stream([pq_shar], fields=[FIELD]), codecs={FIELD: codec}, shuffle=False
    )
    fp16 = load_codec(extracted_shar, load_field_info(extracted_shar, FIELD))
    cuts = {cut.id: cut for cut in open_shar(extracted_shar, [FIELD])}
    found = batch["fields"][FIELD]
    a, b = [], []
    for cut, x, n in zip(batch["cuts"], found["x"].numpy(), found["lens"].tolist()):
        expected = load_field(cuts[cut.id], FIELD, fp16)
        assert len(expected) == n and not x[n:].any()
        a.append((expected - info.mean) / info.std)
        b.append((x[:n] - info.mean) / info.std)
    a, b = np.concatenate(a), np.concatenate(b)
    assert 0.1 < np.linalg.norm(b - a) / np.linalg.norm(a) < 0.8


def test_second_folder_shares_the_codec(pq_shar, shar, tiny):
    infos, _ = extract(shar, [tiny], codec="pq16", codec_dir=pq_shar)
    assert infos[FIELD] == load_field_info(pq_shar, FIELD)  # both have the same cuts
    assert read_origin(shar, FIELD) == read_origin(pq_shar, FIELD)
    load_codec(shar, infos[FIELD])


def test_codecs_of_two_sets_are_not_mixed(shar, tiny, tmp_path):
    other = copy_shar(shar, tmp_path / "other")
    extract(shar, [tiny], codec="int8", codec_frames=100)
    extract(other, [tiny], codec="int8", codec_frames=500)
    with pytest.raises(ValueError, match="codec.npz differs from .*--overwrite"):
        extract(shar, [tiny], codec="int8", codec_dir=other)
    extract(shar, [tiny], codec="int8", codec_dir=other, overwrite=True)
    here, there = (codec_path(folder, FIELD) for folder in (shar, other))
    assert here.read_bytes() == there.read_bytes()


def test_extraction_killed_between_shards_keeps_its_codec(pq_shar, tmp_path, tiny):
    folder = copy_shar(pq_shar, tmp_path / "part")
    info_path(folder, FIELD).unlink()
    for shard in ("000001", "000003"):
        state_path(folder, FIELD, shard).unlink()
        (folder / f"{FIELD}.{shard}.tar").unlink()
    infos, summary = extract(folder, [tiny], codec="pq16")
    assert (summary.shards_done, summary.shards_kept) == (2, 2)
    assert infos[FIELD] == load_field_info(pq_shar, FIELD)


@pytest.mark.parametrize("overwrite", [False, True])
def test_extraction_killed_before_its_first_shard_keeps_its_codec(
    extracted, shar, tiny, monkeypatch, num_trainings, overwrite
):
    folder = extracted if overwrite else shar
    options = {"codec": "int8", "overwrite": overwrite}
    extract_and_interrupt(monkeypatch, folder, [tiny], **options)
    assert num_trainings() == 1
    before = codec_path(folder, FIELD).read_bytes()
    infos, summary = extract(folder, [tiny], **options)
    assert num_trainings() == 1 and summary.shards_done == 4
    assert codec_path(folder, FIELD).read_bytes() == before
    load_codec(folder, infos[FIELD])
    _, summary = extract(folder, [tiny], **options)
    assert num_trainings() == 1 and summary.shards_kept == 4


def test_overwrite_replaces_a_codec_of_other_options(shar, tiny, num_trainings):
    extract(shar, [tiny], codec="int8", codec_frames=500)
    before = codec_path(shar, FIELD).read_bytes()
    extract(shar, [tiny], codec="int8", codec_frames=2000)
    assert num_trainings() == 1
    _, summary = extract(shar, [tiny], codec="int8", codec_frames=2000, overwrite=True)
    assert num_trainings() == 2 and summary.shards_done == 4
    assert codec_path(shar, FIELD).read_bytes() != before


def test_overwrite_replaces_a_damaged_codec(shar, tiny):
    extract(shar, [tiny], codec="int8", codec_frames=500)
    path = codec_path(shar, FIELD)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="codec.npz: damaged"):
        extract(shar, [tiny], codec="int8")
    infos, _ = extract(shar, [tiny], codec="int8", codec_frames=500, overwrite=True)
    load_codec(shar, infos[FIELD])


@pytest.mark.parametrize("shared", [False, True])
def test_codec_of_another_teacher_is_refused(
    shar, pristine_shar, tmp_path, tiny, other_teacher, monkeypatch, shared
):
    extract_and_interrupt(monkeypatch, shar, [tiny], codec="int8", codec_frames=500)
    folder = copy_shar(pristine_shar, tmp_path / "second") if shared else shar
    with pytest.raises(ValueError, match="codec.npz .* context is 1.0, wanted 0.5"):
        extract(folder, [other_teacher], codec="int8", codec_dir=shar)
    if not shared:
        before = codec_path(shar, FIELD).read_bytes()
        options = {"codec_frames": 500, "overwrite": True}
        extract(shar, [other_teacher], codec="int8", **options)
        assert codec_path(shar, FIELD).read_bytes() != before


def test_no_codec_is_trained_for_a_field_of_another_codec(
    extracted, tiny, num_trainings
):
    with pytest.raises(ValueError, match="'fp16', not 'int8'"):
        extract(extracted, [tiny], codec="int8")
    assert num_trainings() == 0 and not codec_path(extracted, FIELD).exists()


def test_lost_codec_of_finished_shards_is_not_replaced(shar, tiny, num_trainings):
    extract(shar, [tiny], codec="int8", codec_frames=500)
    codec_path(shar, FIELD).unlink()
    with pytest.raises(FileNotFoundError, match="codec.npz is missing"):
        extract(shar, [tiny], codec="int8")
    assert num_trainings() == 1


def test_full_disk_leaves_the_old_codec(
    shar, tiny, other_teacher, monkeypatch, num_trainings
):
    extract(shar, [tiny], codec="int8", codec_frames=500)
    fill_disk(monkeypatch)
    with pytest.raises(OSError, match="MB needed"):
        extract(shar, [other_teacher], codec="int8", overwrite=True)
    assert num_trainings() == 1
    codec = load_codec(shar, load_field_info(shar, FIELD))
    for cut in open_shar(shar, [FIELD]):
        assert np.isfinite(load_field(cut, FIELD, codec)).all()


def test_missing_package_is_named_before_a_teacher_runs(shar, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr("icefall_kd.fields.codecs.storage.sample_frames", None)
    with pytest.raises(ValueError, match="pip install faiss-cpu"):
        extract(shar, [tiny], codec="pq16")
