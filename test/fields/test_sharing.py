"""Jobs that share the shards of one folder without knowing of each other."""

import os
import socket
import subprocess
import sys
import time

import pytest
from shar_files import copy_shar, digest

from icefall_kd.bin import extract as extract_command
from icefall_kd.core.distributed import World
from icefall_kd.dataset.fields import open_fields
from icefall_kd.fields.codecs.storage import codec_path
from icefall_kd.fields.extract import SINGLE_PROCESS, extract, train_codecs
from icefall_kd.fields.format import field_dir, info_path
from icefall_kd.fields.planner import select_shards
from icefall_kd.teachers import build_teacher

FIELD = "whisper_tiny_en"
IDS = [f"{n:06d}" for n in range(10)]


@pytest.mark.parametrize(
    "selection, places",
    [
        (None, range(10)),
        ("0:3", [0, 1, 2]),
        ("8:100", [8, 9]),
        ("::4", [0, 4, 8]),
        ("1::4", [1, 5, 9]),
        ("7, 2:4,3", [2, 3, 7]),
        ("-2:", [8, 9]),
    ],
)
def test_shards_are_selected_by_their_place(selection, places):
    assert select_shards(IDS, selection) == [IDS[n] for n in places]


@pytest.mark.parametrize(
    "selection, message",
    [
        ("10:20", "selects none of the 10 shards"),
        ("3,10", "--shards 3,10: '10' .* 10 shards"),
        ("-1", "'-1' does not select"),
        ("a:b", "'a:b' does not select"),
        ("1:2:3:4", "'1:2:3:4' does not select"),
        ("::0", "'::0' does not select"),
        ("", "'' does not select"),
    ],
)
def test_what_selects_nothing_is_refused(selection, message):
    with pytest.raises(ValueError, match=message):
        select_shards(IDS, selection)


def test_the_last_job_writes_the_description_whoever_it_is(shar, tiny, extracted_shar):
    infos, report = extract(shar, [tiny], shards="1:")
    assert (infos, report.missing) == ({}, {FIELD: 1})
    assert not info_path(shar, FIELD).exists()
    infos, report = extract(shar, [tiny], shards="0")
    assert (list(infos), report.missing) == ([FIELD], {})
    assert (report.shards_done, report.shards_kept) == (1, 0)
    assert digest(shar) == digest(extracted_shar)


def test_each_rank_makes_its_own_shards_and_no_others(shar, tiny, extracted_shar):
    first = World(
        0, 2, SINGLE_PROCESS.device
    )  # fp16 is not trained: the two need not meet
    _, report = extract(shar, [tiny], world=first)
    assert report.missing == {FIELD: 2}
    assert not list(shar.glob(f"{FIELD}*"))  # lhotse opens the folder meanwhile
    states = {p.name for p in field_dir(shar, FIELD).glob(f"{FIELD}.*.json")}
    assert states == {f"{FIELD}.000000.json", f"{FIELD}.000002.json"}
    _, report = extract(shar, [tiny], world=World(1, 2, SINGLE_PROCESS.device))
    assert (report.shards_done, report.missing) == (2, {})
    assert digest(shar) == digest(extracted_shar)


def test_a_job_hashes_its_own_shards_alone(extracted, tiny):
    (extracted / f"{FIELD}.000000.tar").write_bytes(b"short")
    assert extract(extracted, [tiny], shards="1:")[1].shards_done == 0
    _, report = extract(extracted, [tiny], shards="1:")
    assert report.missing == {FIELD: 1}  # another's, but too short is seen
    assert extract(extracted, [tiny], shards="0")[1].shards_done == 1


def test_shards_of_jobs_with_other_options_are_told(shar, tiny, caplog):
    train_codecs(shar, [tiny], codec="int8", codec_frames=100)
    extract(shar, [tiny], shards="0:2")
    _, report = extract(shar, [tiny], codec="int8", shards="2:")
    assert report.missing == {FIELD: 2}
    assert "2 shards of field 'whisper_tiny_en' have another" in caplog.text
    assert "--overwrite" in caplog.text


def test_jobs_share_a_codec_that_was_made_before_them(shar, tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="--train-codec-only"):
        extract(shar, [tiny], codec="int8", shards="0:2")
    alone = copy_shar(shar, tmp_path / "alone")
    train_codecs(shar, [tiny], codec="int8", codec_frames=1000)
    codec = codec_path(shar, FIELD).read_bytes()
    for shards in ("0:2", "2:"):
        # No job of an array trains, not even with --overwrite.
        extract(shar, [tiny], codec="int8", shards=shards, overwrite=True)
    assert codec_path(shar, FIELD).read_bytes() == codec
    extract(alone, [tiny], codec="int8", codec_frames=1000)
    assert digest(shar) == digest(alone)


def test_another_sets_codec_is_not_mixed_with_ones_own(shar, tiny, tmp_path):
    other = copy_shar(shar, tmp_path / "other")
    train_codecs(shar, [tiny], codec="int8", codec_frames=100)
    train_codecs(other, [tiny], codec="int8", codec_frames=500)
    with pytest.raises(ValueError, match="differs from .*--overwrite"):
        extract(shar, [tiny], codec="int8", codec_dir=other)
    extract(shar, [tiny], codec="int8", codec_dir=other, overwrite=True)
    here, there = (codec_path(folder, FIELD) for folder in (shar, other))
    assert here.read_bytes() == there.read_bytes()


def test_a_command_of_another_day_takes_the_codec_of_the_first(
    shar, tiny_dir, tmp_path, monkeypatch
):
    """Whatever the order of the folders: the one that is named comes first."""
    other = copy_shar(shar, tmp_path / "other")
    third = copy_shar(shar, tmp_path / "third")

    def call(*folders):
        arguments = ["--shar-dir", *folders, "--codec-from", shar, "--codec", "int8"]
        arguments += ["--teacher", FIELD, "--model-dir", tiny_dir]
        monkeypatch.setattr("sys.argv", ["extract", *map(str, arguments)])
        extract_command.main()

    with pytest.raises(SystemExit, match=str(codec_path(shar, FIELD))):
        call(other)
    call(other, shar)
    call(third)
    open_fields([shar, third], [other], [FIELD])
    info_path(third, FIELD).unlink()
    extract(
        third,
        [build_teacher(FIELD, tiny_dir)],
        codec="int8",
        overwrite=True,
        codec_frames=200,
    )
    with pytest.raises(ValueError, match=f"{third} --codec-from {shar} --overwrite"):
        open_fields([shar, third], [], [FIELD])


def test_partial_files_of_others_stay_and_dead_ones_go(shar, tiny):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = socket.gethostname()
    long_ago = time.time() - 2 * 24 * 3600
    cases = {  # file -> whether it stays
        f".{here}.{dead.pid}.partial.{FIELD}.000000.tar": False,
        f".{here}.{dead.pid}.partial.{FIELD}.json": False,
        f".{here}.{os.getppid()}.partial.{FIELD}.000000.json": True,
        f".elsewhere.{dead.pid}.partial.{FIELD}.000000.tar": True,
        f".elsewhere.1.partial.{FIELD}.000001.tar": False,  # of long ago
        f".{here}.{dead.pid}.partial.{FIELD}.000002.tar": True,  # another job's
        f".{here}.{dead.pid}.partial.{FIELD}_2.000000.tar": True,  # another field
    }
    folder = field_dir(shar, FIELD)
    folder.mkdir(parents=True)
    for name in cases:
        (folder / name).write_bytes(b"part of a shard")
    os.utime(folder / f".elsewhere.1.partial.{FIELD}.000001.tar", (long_ago, long_ago))
    extract(shar, [tiny], shards="0:2")
    assert {name: (folder / name).exists() for name in cases} == cases
