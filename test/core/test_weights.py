"""A checkpoint cannot run code."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from icefall_kd.core.weights import load_weights_only
from icefall_kd.transducer.checkpoint import load_checkpoint


class Touch:
    """Unpickling it creates a file, in one of the ways of a pickle."""

    def __init__(self, path, way):
        self.path, self.way = path, way

    def __reduce__(self):
        if self.way == "system":
            return os.system, (f"touch '{self.path}'",)
        if self.way == "eval":
            return eval, (f"open({str(self.path)!r}, 'w')",)
        if self.way == "method":
            return Path.touch, (self.path,)
        return torch.save, ({}, str(self.path))


WAYS = ["system", "eval", "method", "torch"]


@pytest.mark.parametrize("way", WAYS)
def test_code_in_a_checkpoint_is_not_run(tmp_path, way):
    mark, path = tmp_path / "mark", tmp_path / "epoch-1.pt"
    torch.save({"model": {"w": torch.ones(2)}, "extra": Touch(mark, way)}, path)
    with pytest.raises(ValueError, match=r"epoch-1.pt: damaged or not a checkpoint"):
        load_checkpoint(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # torch.load runs it


@pytest.mark.parametrize("way", WAYS)
def test_code_in_a_plain_pickle_or_an_old_file_is_not_run(tmp_path, way):
    mark = tmp_path / "mark"
    bare, old = tmp_path / "bare.pt", tmp_path / "old.pt"
    bare.write_bytes(pickle.dumps({"model": Touch(mark, way)}))
    torch.save({"model": Touch(mark, way)}, old, _use_new_zipfile_serialization=False)
    for path in (bare, old):
        with pytest.raises(ValueError, match="damaged or not a checkpoint"):
            load_checkpoint(path)
    assert not mark.exists()


def test_tensors_and_plain_types_are_loaded_unchanged(tmp_path):
    shared = torch.arange(6.0)
    content = {
        "tensors": [shared, shared[2:4], torch.zeros(0), torch.ones(2).double()],
        "types": [torch.ones(2, dtype=d) for d in (torch.bfloat16, torch.bool)],
        "plain": [1, -2.5, 1e300, float("inf"), None, True, "ü", (1, [2]), {3: "x"}],
        "ordered": OrderedDict(a=1),
        "bytes": torch.tensor([1, 255], dtype=torch.uint8),
    }
    torch.save(content, tmp_path / "a.pt")
    found = load_weights_only(tmp_path / "a.pt")
    assert found["plain"] == content["plain"] and found["ordered"] == {"a": 1}
    for a, b in zip(found["tensors"], content["tensors"]):
        assert torch.equal(a, b) and a.dtype == b.dtype
    for a, b in zip(found["types"], content["types"]):
        assert torch.equal(a, b) and a.dtype == b.dtype
    found["tensors"][0][2] = 7.0  # tensors that shared memory still share it
    assert found["tensors"][1][0] == 7.0
