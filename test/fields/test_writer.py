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

OPTIONS = {
    "frame_shift": 0.02,
    "codec": make_codec("fp16"),
    "fingerprint": {"layer": "last"},
}


def arrays(keys):
    rng = np.random.default_rng(0)
    return [(k[0], rng.normal(size=(10, 4)).astype(np.float32)) for k in keys]


def write(shar, field, keys, given):
    with write_shard(shar, field, "000000", keys, **OPTIONS) as writer:
        for cut_id, x in given:
            writer.write(cut_id, x)
    return writer.state


def test_the_bytes_depend_on_the_arrays_alone(shar):
    keys = read_keys(shar / "cuts.000000.jsonl.gz")
    state = write(shar, "a", keys, arrays(keys))
    again = write(shar, "b", keys, arrays(keys))
    assert state.sha256 == again.sha256
    assert load_shard_state(state_path(shar, "a", "000000")) == state
    assert state.num_frames == 50 and state.bytes == os.path.getsize(
        staged_path(shar, "a", "000000")
    )


@pytest.mark.parametrize("change", ["order", "fewer", "more"])
def test_arrays_that_are_not_those_of_the_cuts_leave_nothing(shar, change):
    keys = read_keys(shar / "cuts.000000.jsonl.gz")
    given = arrays(keys)
    given = {
        "order": given[::-1],
        "fewer": given[:-1],
        "more": given + [("x", given[0][1])],
    }[change]
    before = sorted(os.listdir(shar))
    with pytest.raises(ValueError, match="expected|4 arrays for 5 cuts"):
        write(shar, "a", keys, given)
    assert sorted(os.listdir(shar)) == before
    assert not list(field_dir(shar, "a").iterdir())
