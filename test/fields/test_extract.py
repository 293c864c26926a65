"""Extraction by one process: fields on disk, faults and repeated runs."""

import gzip
import io
import logging
import os
import shutil
import tarfile
from collections import namedtuple

import numpy as np
import pytest
import torch
from dummies import full_disk
from shar_files import digest

from icefall_kd.data.shar import fields_dir
from icefall_kd.fields import planner
from icefall_kd.fields.codecs import make_codec
from icefall_kd.fields.extract import extract
from icefall_kd.fields.format import field_dir, info_path, load_field_info, state_path
from icefall_kd.fields.reader import load_field, open_shar
from icefall_kd.teachers import build_teacher

FIELD = "whisper_tiny_en"
FP16 = make_codec("fp16")


def counts(summary):
    return summary.shards_done, summary.shards_kept


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_stored_frames_are_those_of_the_teacher(extracted_shar, tiny):
    cuts = list(open_shar(extracted_shar, [FIELD]))
    assert len(cuts) == 18
    for cut in cuts:
        wave = torch.from_numpy(cut.load_audio())
        x = tiny.forward(wave, torch.tensor([wave.shape[1]]))[FIELD].x[0].numpy()
        stored = load_field(cut, FIELD, FP16)
        assert stored.dtype == np.float32 and stored.shape[1] == 384
        # Lhotse rounds the duration to frames and may drop half a frame.
        assert 0 <= len(x) - len(stored) <= 1
        np.testing.assert_allclose(stored, x[: len(stored)], atol=2e-2, rtol=2e-3)


def test_description_has_the_statistics_of_all_frames(extracted_shar, tiny):
    info = load_field_info(extracted_shar, FIELD)
    arrays = [getattr(cut, FIELD).load() for cut in open_shar(extracted_shar, [FIELD])]
    frames = np.concatenate(arrays).astype(np.float64)
    assert (info.dim, info.frame_shift, info.codec) == (384, 0.02, "fp16")
    assert (info.num_cuts, info.num_frames) == (18, len(frames))
    np.testing.assert_allclose(info.mean, frames.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(info.std, frames.std(axis=0), rtol=1e-6)
    assert tiny.outputs[FIELD].fingerprint.items() <= info.fingerprint.items()
    assert [s["num_cuts"] for s in info.shards] == [5, 5, 5, 3]


def test_only_files_of_the_field_are_written(extracted_shar, pristine_shar):
    names = {p.name for p in extracted_shar.iterdir()}
    before = {p.name for p in pristine_shar.iterdir()}
    assert names - before == {f"{FIELD}.00000{i}.tar" for i in range(4)}
    description = {p.name for p in field_dir(extracted_shar, FIELD).iterdir()}
    states = {f"{FIELD}.00000{i}.json" for i in range(4)}
    assert description == {*states, f"{FIELD}.json"}
    for name in before:
        assert (extracted_shar / name).read_bytes() == (
            pristine_shar / name
        ).read_bytes()


def test_second_run_keeps_everything(extracted, tiny):
    before = digest(extracted)
    assert counts(extract(extracted, [tiny])[1]) == (0, 4)
    assert digest(extracted) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_bytes(p.read_bytes()[:-3000]),
        flip_a_bit,
        lambda p: p.unlink(),
        lambda p: state_path(p.parent, FIELD, "000002").unlink(),
        lambda p: state_path(p.parent, FIELD, "000002").write_text('{"tar": '),
    ],
    ids=["truncated", "bit flipped", "missing", "state missing", "state truncated"],
)
def test_only_the_damaged_shard_is_written_again(extracted, tiny, damage):
    before = digest(extracted)
    damage(extracted / f"{FIELD}.000002.tar")
    assert counts(extract(extracted, [tiny])[1]) == (1, 3)
    assert digest(extracted) == before


def test_size_check_misses_a_flipped_bit(extracted, tiny):
    flip_a_bit(extracted / f"{FIELD}.000002.tar")
    assert extract(extracted, [tiny], verify="size")[1].shards_kept == 4
    assert extract(extracted, [tiny])[1].shards_kept == 3
    with pytest.raises(ValueError, match="verify is 'quick'.* full or size"):
        extract(extracted, [tiny], verify="quick")


def test_missing_description_alone_is_written_again(extracted, tiny):
    before = digest(extracted)
    info_path(extracted, FIELD).unlink()
    assert counts(extract(extracted, [tiny])[1]) == (0, 4)
    assert digest(extracted) == before


def test_changed_cuts_are_extracted_again(extracted, tiny):
    path = extracted / "cuts.000001.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().replace('"asterisk', '"other')
    path.write_bytes(gzip.compress(lines.encode()))
    audio = extracted / "recording.000001.tar"
    with tarfile.open(audio) as old:
        members = [(m, old.extractfile(m).read()) for m in old.getmembers()]
    with tarfile.open(audio, "w") as new:
        for member, data in members:
            member.name = member.name.replace("asterisk", "other")
            if member.name.endswith(".json"):
                data = data.replace(b'"asterisk', b'"other')
                member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    assert counts(extract(extracted, [tiny])[1]) == (1, 3)
    assert len(list(open_shar(extracted, [FIELD]))) == 18


def test_field_of_another_fingerprint_is_kept_without_overwrite(extracted, tiny_dir):
    before = digest(extracted)
    other = build_teacher(FIELD, tiny_dir, context=0.5, num_threads=1)
    with pytest.raises(ValueError, match="context is 1.0, wanted 0.5.*--overwrite"):
        extract(extracted, [other])
    assert digest(extracted) == before
    assert counts(extract(extracted, [other], overwrite=True)[1]) == (4, 0)
    assert load_field_info(extracted, FIELD).fingerprint["context"] == 0.5


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_arrays_of_another_program_are_kept_without_overwrite(extracted, tiny, codec):
    shutil.rmtree(fields_dir(extracted))
    before = digest(extracted, "*.tar")
    with pytest.raises(ValueError, match=f"'{FIELD}' has arrays.*--overwrite"):
        extract(extracted, [tiny], codec=codec)
    assert digest(extracted, "*.tar") == before and not fields_dir(extracted).exists()
    extract(extracted, [tiny], codec=codec, overwrite=True)
    assert load_field_info(extracted, FIELD).num_cuts == 18


def test_second_field_is_added(extracted, tiny_dir):
    other = build_teacher(FIELD, tiny_dir, "small", compute_type="int8", num_threads=1)
    extract(extracted, [other])
    cut = next(iter(open_shar(extracted, ["small", FIELD])))
    a, b = load_field(cut, "small", FP16), load_field(cut, FIELD, FP16)
    assert a.shape == b.shape and (a != b).any()


@pytest.mark.parametrize("field", ["cuts", "recording", "a-b", "a.b", "9"])
def test_invalid_field_name_is_refused(shar, tiny_dir, field):
    teacher = build_teacher(FIELD, tiny_dir, field, num_threads=1)
    with pytest.raises(ValueError, match=f"'{field}'"):
        extract(shar, [teacher])


def test_missing_audio_is_named(shar, tiny):
    (shar / "recording.000001.tar").unlink()
    with pytest.raises(FileNotFoundError, match="recording.000001.tar"):
        extract(shar, [tiny])


def test_progress_ends_at_the_total(shar, tiny, caplog):
    calls = []
    with caplog.at_level(logging.WARNING):
        _, summary = extract(shar, [tiny], progress=lambda *x: calls.append(x))
    done, total = calls[-1]
    assert done == pytest.approx(total) == pytest.approx(summary.seconds)
    assert not caplog.records


def test_nothing_is_written_if_the_disk_is_too_full(shar, tiny, monkeypatch):
    before = sorted(os.listdir(shar))
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 10**6)
    monkeypatch.setattr(planner.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="MB needed .*, 1.0 MB free"):
        extract(shar, [tiny])
    assert sorted(os.listdir(shar)) == before and not fields_dir(shar).exists()


def test_finished_shards_are_kept_if_the_disk_fills_up(shar, tiny, extracted_shar):
    sizes = [s["bytes"] for s in load_field_info(extracted_shar, FIELD).shards]
    full = next(n for n in range(1, 4) if sizes[n] > max(sizes[:n]))
    with full_disk(max(sizes[:full])):
        with pytest.raises(OSError, match=f"{FIELD}.00000{full}.tar"):
            extract(shar, [tiny])
    assert not list(shar.glob(f"*{FIELD}*"))
    names = {p.name for p in field_dir(shar, FIELD).iterdir()}
    finished = range(full)
    assert names == {f"{FIELD}.00000{n}.{e}" for n in finished for e in ("tar", "json")}
    assert counts(extract(shar, [tiny])[1]) == (4 - full, full)
    assert digest(shar) == digest(extracted_shar)
