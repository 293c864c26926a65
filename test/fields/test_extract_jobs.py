"""Extraction by several processes, and by processes that are killed."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple

import pytest
import yaml
from dummies import free_port
from shar_files import copy_shar, digest

from icefall_kd.bin import extract as command
from icefall_kd.core.distributed import World
from icefall_kd.data.shar import fields_dir
from icefall_kd.dataset.fields import open_fields
from icefall_kd.fields.codecs.storage import codec_path, get_codecs
from icefall_kd.fields.extract import SINGLE_PROCESS, extract
from icefall_kd.fields.format import field_dir, info_path
from icefall_kd.teachers import build_teacher

FIELD = "whisper_tiny_en"

# Teachers, their YAML file, and the digest of their fields by one undisturbed process.
TwoFields = namedtuple("TwoFields", "teachers yaml expected")


@pytest.fixture(scope="module")
def two_fields(tiny, tiny_dir, extracted_shar, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    small = {"family": FIELD, "model_dir": str(tiny_dir), "context": 0.0}
    path = folder / "teachers.yaml"
    path.write_text(
        yaml.safe_dump({FIELD: {"model_dir": str(tiny_dir)}, "small": small})
    )
    teacher = build_teacher(FIELD, tiny_dir, "small", context=0.0, num_threads=1)
    shar = copy_shar(extracted_shar, folder / "shar")
    extract(shar, [teacher])
    return TwoFields([tiny, teacher], path, digest(shar))


def start_command(folder, teachers_yaml, ranks, *options):
    """Start the command as torchrun does, once per rank."""
    line = [sys.executable, "-m", "icefall_kd.bin.extract", "--num-threads", "1"]
    line += ["--shar-dir", str(folder), "--teachers", str(teachers_yaml), *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if ranks > 1:
        env.update(WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1")
        env.update(MASTER_PORT=str(free_port()))
    return [
        subprocess.Popen(
            line,
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def finished_states(folder):
    """Return the names of the states of finished shards."""
    paths = fields_dir(folder).glob("*/*.0*.json")
    return {p.name for p in paths if not p.name.startswith(".")}


def unfinished_shards(folder):
    """Return the shards with temporary files."""
    names = (p.name for p in fields_dir(folder).glob("*/.*"))
    found = (re.search(r"\.partial\..*\.(\d+)\.", name) for name in names)
    return {match[1] for match in found if match}


def kill_in_a_shard(folder, teachers_yaml, ranks, num_finished, delay):
    """SIGKILL all ranks ``delay`` s after one starts a shard.

    Args:
      num_finished: states that must exist before.
    Returns:
      the number of shards that the kill interrupted.
    """
    processes = start_command(folder, teachers_yaml, ranks)
    while all(p.poll() is None for p in processes):
        if unfinished_shards(folder) and len(finished_states(folder)) >= num_finished:
            break
        time.sleep(0.001)
    time.sleep(delay)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    ended = [(p.wait(), p.stderr.read()) for p in processes]
    assert any(status == -signal.SIGKILL for status, _ in ended), f"too late: {ended}"
    return len(unfinished_shards(folder))


def check_kill(folder, two_fields, ranks, num_finished, delay):
    """Kill an extraction, complete it, and compare it with an undisturbed one."""
    interrupted = kill_in_a_shard(folder, two_fields.yaml, ranks, num_finished, delay)
    assert interrupted <= ranks
    kept = len(finished_states(folder))
    _, summary = extract(folder, two_fields.teachers)
    assert (summary.shards_done, summary.shards_kept) == (8 - kept, kept)
    assert digest(folder) == two_fields.expected


def test_killed_extraction_continues(shar, two_fields):
    check_kill(shar, two_fields, 1, num_finished=3, delay=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_extraction_killed_at_20_moments_continues(shar, two_fields, seed, ranks):
    rng = random.Random(seed)
    check_kill(shar, two_fields, ranks, rng.randint(0, 4), rng.uniform(0, 0.1))


def test_two_ranks_write_what_one_writes_with_one_codec(shar, two_fields):
    processes = start_command(
        shar, two_fields.yaml, 2, "--codec", "int8", "--codec-frames", "1000"
    )
    logs = [p.communicate(timeout=120)[1] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], logs
    assert [log.count("training codec int8") for log in logs] == [2, 0]
    assert all("4 shards written, 0 kept" in log for log in logs)
    written = digest(shar)
    for overwrite in (False, True):  # a codec that is trained again is the same
        options = {"codec_frames": 1000, "overwrite": overwrite}
        _, summary = extract(shar, two_fields.teachers, codec="int8", **options)
        assert (summary.shards_done, summary.shards_kept) == (0, 8)
        assert digest(shar) == written


@pytest.mark.slow
def test_ranks_end_if_the_codec_cannot_be_trained(shar, two_fields):
    (shar / "recording.000000.tar").write_bytes(b"")
    (shar / "recording.000001.tar").write_bytes(b"")
    processes = start_command(shar, two_fields.yaml, 2, "--codec", "int8")
    logs = [p.communicate(timeout=60)[1] for p in processes]
    assert all(p.returncode not in (0, -signal.SIGKILL) for p in processes)
    assert "recording.00000" in logs[0].splitlines()[-1]
    assert "rank 0" in logs[1]


def test_last_job_writes_the_description(shar, tiny, extracted_shar):
    infos, summary = extract(shar, [tiny], shards="1:")
    assert (infos, summary.missing) == ({}, {FIELD: 1})
    assert not info_path(shar, FIELD).exists()
    infos, summary = extract(shar, [tiny], shards="0")
    assert (list(infos), summary.missing) == ([FIELD], {})
    assert (summary.shards_done, summary.shards_kept) == (1, 0)
    assert digest(shar) == digest(extracted_shar)


def test_each_rank_writes_its_own_shards(shar, tiny, extracted_shar):
    ranks = [World(rank, 2, SINGLE_PROCESS.device) for rank in range(2)]
    _, summary = extract(shar, [tiny], world=ranks[0])
    assert summary.missing == {FIELD: 2}
    assert not list(shar.glob(f"{FIELD}*"))  # Lhotse can open the folder meanwhile
    states = {f"{FIELD}.000000.json", f"{FIELD}.000002.json"}
    assert finished_states(shar) == states
    _, summary = extract(shar, [tiny], world=ranks[1])
    assert (summary.shards_done, summary.missing) == (2, {})
    assert digest(shar) == digest(extracted_shar)


def test_job_verifies_only_its_own_shards(extracted, tiny):
    (extracted / f"{FIELD}.000000.tar").write_bytes(b"short")
    _, summary = extract(extracted, [tiny], shards="1:")
    assert summary.shards_done == 0
    assert summary.missing == {FIELD: 1}  # the size of other jobs' shards is checked
    assert extract(extracted, [tiny], shards="0")[1].shards_done == 1


def test_shards_of_jobs_with_other_options_cause_a_warning(shar, tiny, caplog):
    get_codecs(shar, [tiny], "int8", world=SINGLE_PROCESS, codec_frames=100)
    extract(shar, [tiny], shards="0:2")
    _, summary = extract(shar, [tiny], codec="int8", shards="2:")
    assert summary.missing == {FIELD: 2}
    assert f"2 shards of field '{FIELD}'" in caplog.text
    assert "--overwrite" in caplog.text


def test_jobs_share_a_codec_that_was_trained_before(shar, tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="--train-codec-only"):
        extract(shar, [tiny], codec="int8", shards="0:2")
    alone = copy_shar(shar, tmp_path / "alone")
    get_codecs(shar, [tiny], "int8", world=SINGLE_PROCESS, codec_frames=1000)
    codec = codec_path(shar, FIELD).read_bytes()
    for shards in ("0:2", "2:"):
        # A job with --shards never trains, not even with --overwrite.
        extract(shar, [tiny], codec="int8", shards=shards, overwrite=True)
    assert codec_path(shar, FIELD).read_bytes() == codec
    extract(alone, [tiny], codec="int8", codec_frames=1000)
    assert digest(shar) == digest(alone)


def test_later_command_copies_the_codec_of_the_first(
    shar, tiny_dir, tmp_path, monkeypatch
):
    other = copy_shar(shar, tmp_path / "other")
    third = copy_shar(shar, tmp_path / "third")

    def run(*folders):
        options = ["--shar-dir", *folders, "--codec-from", shar, "--codec", "int8"]
        options += ["--teacher", FIELD, "--model-dir", tiny_dir]
        options += ["--codec-frames", "500"]
        monkeypatch.setattr("sys.argv", ["extract", *map(str, options)])
        command.main()

    with pytest.raises(SystemExit, match=str(codec_path(shar, FIELD))):
        run(other)
    run(other, shar)  # the folder of --codec-from is extracted first
    run(third)
    open_fields([shar, third], [other], [FIELD])
    info_path(third, FIELD).unlink()
    teacher = build_teacher(FIELD, tiny_dir)
    extract(third, [teacher], codec="int8", overwrite=True, codec_frames=200)
    with pytest.raises(ValueError, match=f"{third} --codec-from {shar} --overwrite"):
        open_fields([shar, third], [], [FIELD])


def test_only_temporary_files_of_dead_processes_are_removed(shar, tiny):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    two_days_ago = time.time() - 2 * 24 * 3600
    is_kept = {
        f".{host}.{dead.pid}.partial.{FIELD}.000000.tar": False,
        f".{host}.{dead.pid}.partial.{FIELD}.json": False,
        f".{host}.{os.getppid()}.partial.{FIELD}.000000.json": True,
        f".elsewhere.{dead.pid}.partial.{FIELD}.000000.tar": True,
        f".elsewhere.1.partial.{FIELD}.000001.tar": False,  # two days old
        f".{host}.{dead.pid}.partial.{FIELD}.000002.tar": True,  # of another job
        f".{host}.{dead.pid}.partial.{FIELD}_2.000000.tar": True,  # of another field
    }
    folder = field_dir(shar, FIELD)
    folder.mkdir(parents=True)
    for name in is_kept:
        (folder / name).write_bytes(b"part of a shard")
    old = folder / f".elsewhere.1.partial.{FIELD}.000001.tar"
    os.utime(old, (two_days_ago, two_days_ago))
    extract(shar, [tiny], shards="0:2")
    assert {name: (folder / name).exists() for name in is_kept} == is_kept
