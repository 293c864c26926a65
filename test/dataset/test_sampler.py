"""Batches of a sampler, and their exact resume."""

import os
import shutil
from itertools import islice

import numpy as np
import pytest
from dummies import noise_cuts

from icefall_kd.data.shar import write_shar
from icefall_kd.dataset.sampler import BucketSampler, bucket_edges
from icefall_kd.dataset.stream import open_stream
from icefall_kd.transducer.checkpoint import load_checkpoint, save_checkpoint

MAX_DURATION = 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Shar set of 80 cuts of 0.1 to 0.9 s in shards of 8."""
    root = tmp_path_factory.mktemp("set")
    durations = 0.1 + 0.8 * np.random.default_rng(5).random(80)
    write_shar(noise_cuts(root, durations), root / "noise", shard_size=8)
    return root / "noise"


def sampler(folder, buckets=3, **options):
    stream = open_stream([folder], shuffle=buckets > 0)
    edges = bucket_edges(stream.durations[0], buckets) if buckets else None
    options = {"buffer_size": 16, "max_duration": MAX_DURATION, **options}
    return BucketSampler(stream, edges=edges, seed=3, **options)


def ids(batches):
    return [[cut.id for cut in batch] for batch in batches]


@pytest.mark.parametrize("buckets, rank, world_size", [(3, 0, 1), (3, 1, 2), (0, 0, 1)])
def test_sampler_resumes_from_every_state(folder, buckets, rank, world_size):
    where = {"buckets": buckets, "rank": rank, "world_size": world_size}
    complete = sampler(folder, **where)
    complete.set_epoch(2)
    states = [(batch, complete.state_dict()) for batch in complete]
    batches = ids(batch for batch, _ in states)
    assert len(batches) > 8
    for k, (_, state) in enumerate(states):
        resumed = sampler(folder, **where)
        resumed.load_state_dict(state)
        assert ids(resumed) == batches[k + 1 :], k
    resumed.set_epoch(3)
    next_epoch = ids(resumed)
    assert sum(map(len, next_epoch)) >= 80 // world_size - 1


def test_state_survives_a_checkpoint(folder, tmp_path):
    complete = sampler(folder)
    first = ids(islice(complete, 5))
    save_checkpoint(tmp_path / "a.pt", {"model": {}, "sampler": complete.state_dict()})
    resumed = sampler(folder)
    resumed.load_state_dict(load_checkpoint(tmp_path / "a.pt")["sampler"])
    assert first + ids(resumed) == ids(sampler(folder))


def test_resume_with_other_ranks_or_sizes_loses_and_repeats_no_cut(folder):
    ranks = [sampler(folder, rank=rank, world_size=2) for rank in range(2)]
    seen = sum((ids(islice(r, 4)) for r in ranks), [])
    resumed = sampler(folder, max_duration=1.3)
    resumed.load_state_dict(ranks[0].state_dict())
    everything = sum(seen + ids(resumed), [])
    assert sorted(everything) == sorted(f"noise-{i}" for i in range(80))


def bytes_read():
    """Return the bytes that this process has read from files."""
    (line,) = (x for x in open("/proc/self/io") if x.startswith("rchar:"))
    return int(line.split()[1])


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A Shar set of 80 cuts of 2 to 4 s in shards of 10, and the bytes of its audio."""
    root = tmp_path_factory.mktemp("large")
    durations = 2.0 + 2.0 * np.random.default_rng(5).random(80)
    write_shar(noise_cuts(root, durations), root / "noise", shard_size=10)
    return root / "noise", sum(
        path.stat().st_size for path in (root / "noise").glob("recording.*.tar")
    )


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_rank_reads_only_the_audio_of_its_batches(large, world_size):
    folder, size = large
    seen, read = [], []
    for rank in range(world_size):
        where = {"rank": rank, "world_size": world_size, "max_duration": 12.0}
        begun, before = sampler(folder, **where), bytes_read()
        first = ids(islice(begun, 1))
        rest = sampler(folder, **where)  # a resume reads no more
        rest.load_state_dict(begun.state_dict())
        seen += first + ids(rest)
        read.append((bytes_read() - before) / size)
    drawn = sum(seen, [])
    assert len(drawn) == len(set(drawn)) >= 80 - world_size + 1
    # The share of a rank depends on its batches; headers add 2 kB for each cut.
    assert all(abs(part - 1 / world_size) < 0.12 for part in read), read
    assert sum(read) < 1 + 0.06 * world_size


def test_error_names_a_file_truncated_after_its_headers_were_read(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "noise")
    batches = iter(sampler(copy, buffer_size=80))
    next(batches)
    for path in copy.glob("recording.*.tar"):
        os.truncate(path, 2048)
    with pytest.raises(ValueError, match=r"recording.*tar: cut 'noise-\d+' is damaged"):
        list(batches)


def test_resume_opens_only_the_needed_shards(folder, tmp_path):
    """Shards whose cuts were all drawn may be unreadable."""
    broken, resumed = (sampler(folder, buffer_size=4, buckets=2) for _ in range(2))
    done = ids(islice(broken, 20))
    state = broken.state_dict()
    needed = {int(key[1]) for key in state["keys"]}
    _, nth, _ = state["place"]["sets"][0]
    order = broken.stream.shard_order(0, 0, 0)
    spared = set(order[:nth]) - needed
    assert len(spared) >= 3
    for number in spared:
        shard = broken.stream.sources[0].shards[number]
        for path in (shard.cuts, *shard.tars.values()):
            content = path.read_bytes()
            path.rename(tmp_path / path.name)
            path.write_bytes(b"x" * len(content))
    try:
        resumed.load_state_dict(state)
        rest = ids(resumed)
    finally:
        for path in tmp_path.glob("*"):
            path.replace(folder / path.name)
    assert sorted(sum(done + rest, [])) == sorted(f"noise-{i}" for i in range(80))


def test_batches_have_little_padding(folder):
    padded = total = 0.0
    for batch in sampler(folder, buckets=4, buffer_size=80):
        durations = [cut.duration for cut in batch]
        assert max(durations) * len(durations) <= MAX_DURATION
        padded += max(durations) * len(durations)
        total += sum(durations)
    assert total > 0.8 * padded


def test_cut_above_the_limit_is_a_batch_alone(folder):
    batches = ids(sampler(folder, max_duration=0.05))
    assert sorted(sum(batches, [])) == sorted(f"noise-{i}" for i in range(80))
    assert all(len(batch) == 1 for batch in batches)


def test_state_of_other_data_is_refused(folder, tmp_path):
    state = next((s.state_dict() for s in [sampler(folder)] for _ in s), None)
    write_shar(noise_cuts(tmp_path, [0.3, 0.4]), tmp_path / "noise")
    with pytest.raises(ValueError, match=r"not that of the checkpoint.*checkpoint-\*"):
        sampler(tmp_path / "noise", buckets=0).load_state_dict(state)
    with pytest.raises(ValueError, match="not that of the checkpoint"):
        sampler(folder).load_state_dict({"epoch": 1, "batch": 3})  # an old format


def test_edges_divide_the_total_duration():
    durations = np.random.default_rng(0).exponential(3.0, 10000)
    edges = bucket_edges(durations, 5)
    parts = np.split(np.sort(durations), np.searchsorted(np.sort(durations), edges))
    assert len(parts) == 5
    for part in parts:
        assert part.sum() == pytest.approx(durations.sum() / 5, rel=0.01)
    assert bucket_edges([2.0, 2.0], 1) == []
