"""Shards of a field."""

import os

import numpy as np
import pytest

from icefall_kd.fields.codecs import make_codec
from icefall_kd.fields.format import (
    field_dir,
    load_shard_state,
    staged_path,
    state_path,
)
from icefall_kd.fields.join import read_keys
from icefall_kd.fields.writer import write_shard

SHARD = "000000"


def make_arrays(keys):
    rng = np.random.default_rng(0)
    return [(k[0], rng.normal(size=(10, 4)).astype(np.float32)) for k in keys]


def write(shar, field, keys, arrays):
    """Write a shard; return its state."""
    options = {"frame_shift": 0.02, "codec": make_codec("fp16"), "fingerprint": {}}
    with write_shard(shar, field, SHARD, keys, **options) as writer:
        for cut_id, x in arrays:
            writer.write(cut_id, x)
    return load_shard_state(state_path(shar, field, SHARD))


@pytest.fixture
def keys(shar):
    return read_keys(shar / f"cuts.{SHARD}.jsonl.gz")


def test_bytes_depend_only_on_the_arrays(shar, keys):
    state = write(shar, "a", keys, make_arrays(keys))
    again = write(shar, "b", keys, make_arrays(keys))
    assert state.sha256 == again.sha256
    assert (state.num_cuts, state.num_frames, len(state.sum)) == (5, 50, 4)
    assert state.bytes == os.path.getsize(staged_path(shar, "a", SHARD))


@pytest.mark.parametrize("change", ["order", "fewer", "more"])
def test_arrays_of_other_cuts_are_refused_and_removed(shar, keys, change):
    arrays = make_arrays(keys)
    arrays = {
        "order": arrays[::-1],
        "fewer": arrays[:-1],
        "more": [*arrays, ("x", arrays[0][1])],
    }[change]
    before = sorted(os.listdir(shar))
    with pytest.raises(ValueError, match=f"{keys[0][0]}|4 arrays for 5 cuts|'x'"):
        write(shar, "a", keys, arrays)
    assert sorted(os.listdir(shar)) == before
    assert not list(field_dir(shar, "a").iterdir())
