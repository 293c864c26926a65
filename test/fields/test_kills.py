"""An extraction that is killed goes on, and ends as if nothing had happened."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest
import yaml
from dummies import free_port
from shar_files import copy_shar, digest

from icefall_kd.data.shar import fields_dir
from icefall_kd.fields.extract import extract
from icefall_kd.teachers import build_teacher

Two = namedtuple("Two", "teachers conf expected")  # two fields made in one pass


@pytest.fixture(scope="module")
def two(tiny, tiny_dir, extracted_shar, tmp_path_factory):
    """Teachers of two fields, their description, what they write undisturbed."""
    conf = {
        "whisper_tiny_en": {"model_dir": str(tiny_dir)},
        "small": {
            "family": "whisper_tiny_en",
            "model_dir": str(tiny_dir),
            "context": 0.0,
        },
    }
    folder = tmp_path_factory.mktemp("two")
    path = folder / "teachers.yaml"
    path.write_text(yaml.safe_dump(conf))
    small = build_teacher(
        "whisper_tiny_en", tiny_dir, "small", context=0.0, num_threads=1
    )
    shar = copy_shar(extracted_shar, folder / "shar")
    extract(shar, [small])
    return Two([tiny, small], path, digest(shar))


def start(folder, conf, ranks, *options):
    """Start the command as torchrun would, ``ranks`` times."""
    command = [sys.executable, "-m", "icefall_kd.bin.extract", "--num-threads", "1"]
    command += ["--shar-dir", str(folder), "--teachers", str(conf), *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if ranks > 1:
        env.update(WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1")
        env.update(MASTER_PORT=str(free_port()))
    return [
        subprocess.Popen(
            command,
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def whole(folder):
    """Return the states of finished shards."""
    paths = fields_dir(folder).glob("*/*.0*.json")
    return {p.name for p in paths if not p.name.startswith(".")}


def begun(folder):
    """Return the numbers of the shards that were being written."""
    names = (p.name for p in fields_dir(folder).glob("*/.*"))
    found = (re.search(r"\.partial\..*\.(\d+)\.", name) for name in names)
    return {match[1] for match in found if match}


def kill_in_the_middle(folder, conf, ranks, states, delay):
    """SIGKILL all ranks ``delay`` s after one begins a shard and ``states`` are there.

    Return the number of shards that this costs.
    """
    processes = start(folder, conf, ranks)
    while all(p.poll() is None for p in processes):
        if begun(folder) and len(whole(folder)) >= states:
            break
        time.sleep(0.001)
    time.sleep(delay)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    ended = [(p.wait(), p.stderr.read()) for p in processes]
    killed = [status for status, _ in ended if status == -signal.SIGKILL]
    assert killed, f"all ended before they were killed: {ended}"
    return len(begun(folder))


def check_kills(folder, two, ranks, after, rng):
    """Kill once for each number of states in ``after``, then let it finish."""
    for states in after:
        before = whole(folder)
        redone = kill_in_the_middle(
            folder, two.conf, ranks, states, rng.uniform(0, 0.1)
        )
        assert redone <= ranks, "more than one shard a rank is made again"
        assert before <= whole(folder), "a whole shard was lost"
    kept = len(whole(folder))
    _, report = extract(folder, two.teachers)
    assert report.shards_kept == kept, "a whole shard was made again"
    assert report.shards_done == 8 - kept
    assert digest(folder) == two.expected


def test_killed_in_the_middle_it_ends_as_if_undisturbed(shar, two):
    check_kills(shar, two, 1, (3,), random.Random(1))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_20_moments_it_ends_as_if_undisturbed(shar, two, seed, ranks):
    rng = random.Random(seed)
    check_kills(shar, two, ranks, (rng.randint(0, 4),), rng)


def test_two_ranks_write_what_one_writes_with_one_codec(shar, two, extracted_shar):
    ended = [
        (p.communicate(timeout=120)[1], p.returncode)
        for p in start(shar, two.conf, 2, "--codec", "int8")
    ]
    assert [status for _, status in ended] == [0, 0], ended
    assert [text.count("training codec int8") for text, _ in ended] == [2, 0]
    assert all("4 shards written, 0 kept" in text for text, _ in ended)
    written = digest(shar)
    _, report = extract(shar, two.teachers, codec="int8")
    assert (report.shards_done, report.shards_kept) == (0, 8)
    assert digest(shar) == written
    _, report = extract(shar, two.teachers, codec="int8", overwrite=True)
    assert report.shards_done == 0  # a codec trained again is the same
    assert digest(shar) == written


@pytest.mark.slow
def test_ranks_do_not_wait_for_a_codec_that_will_not_come(shar, two):
    (shar / "recording.000000.tar").write_bytes(b"")
    (shar / "recording.000001.tar").write_bytes(b"")
    processes = start(shar, two.conf, 2, "--codec", "int8")
    texts = [p.communicate(timeout=60)[1] for p in processes]
    assert all(p.returncode not in (0, -signal.SIGKILL) for p in processes)
    assert "recording.00000" in texts[0].splitlines()[-1]
    assert "rank 0 did not finish training the codec" in texts[1]
