"""The memory probe before the first update."""

import contextlib
import dataclasses
import re
import resource
from pathlib import Path

import pytest
import torch
from dummies import noise_cuts
from training_runs import change

from icefall_kd.core.distributed import World
from icefall_kd.data.shar import write_shar
from icefall_kd.fields.extract import extract
from icefall_kd.training.memory import (
    OutOfMemoryError,
    explain_out_of_memory,
    largest_batches,
    probe_memory,
)
from icefall_kd.training.run import train
from icefall_kd.training.setup import build_setup, make_train_loader
from icefall_kd.transducer.checkpoint import load_checkpoint

CPU = torch.device("cpu")


def batches_of(setup, needs_text=True):
    loader = make_train_loader(setup, World(0, 1, CPU))
    duration = setup.config.data.max_duration
    return list(largest_batches(setup.train_stream, loader, duration, needs_text))


def test_training_after_the_probe_is_bitwise_the_same(config, tmp_path, caplog):
    config = dataclasses.replace(config, num_epochs=1, amp="bf16")
    train(config)
    assert "memory probe" not in caplog.text
    probed = dataclasses.replace(
        config, memory_probe=True, exp_dir=str(tmp_path / "probed")
    )
    caplog.set_level("INFO")
    train(probed)
    assert "memory probe: training on 4.0 s with padding: 2 cuts of 1.90" in caplog.text
    saved = [load_checkpoint(Path(c.exp_dir) / "epoch-1.pt") for c in (config, probed)]
    for part in ("model", "heads", "model_avg"):
        for name, value in saved[0][part].items():
            assert torch.equal(value, saved[1][part][name]), name
    for a, b in zip(saved[0]["rng"], saved[1]["rng"]):
        assert torch.equal(a["torch"], b["torch"]) and a["python"] == b["python"]
    caplog.clear()
    train(dataclasses.replace(probed, num_epochs=2))  # a resumed run was probed before
    assert "memory probe" not in caplog.text


def test_the_probe_reaches_all_parameters_with_the_longest_cuts(config):
    setup = build_setup(change(config, data=dict(max_duration=6.5)))
    (batch,) = batches_of(setup)
    assert [c.id for c in batch["cuts"]] == [f"train-noise-{i}" for i in (11, 10, 9)]
    reached = set()
    for name, p in setup.student.trainable():
        p.register_hook(lambda grad, name=name: reached.add(name))
    probe_memory(
        setup.student,
        setup.train_stream,
        make_train_loader(setup, World(0, 1, CPU)),
        device=CPU,
        autocast=contextlib.nullcontext,
        max_duration=6.5,
    )
    every = {name for name, _ in setup.student.trainable()}
    assert {n.split(".")[0] for n in every} == {"model", "heads"}
    assert reached == every
    assert all(p.grad is None for p in setup.student.parameters())


def test_the_longest_labelled_cuts_are_probed_too(only, energy_teachers, tmp_path):
    for name, durations, texts in (
        ("a", [1.0, 1.2], ["ONE", "TWO"]),
        ("b", [2.0], None),
    ):
        (tmp_path / f"audio-{name}").mkdir()
        cuts = noise_cuts(tmp_path / f"audio-{name}", durations, texts)
        cuts = cuts.modify_ids(lambda i, name=name: f"{name}-{i}")
        write_shar(cuts, tmp_path / "shar" / name)
        extract(tmp_path / "shar" / name, energy_teachers)
    config = only("ctc", "embedding")  # with only ctc the cuts of b are left out
    data = {"shar_dir": str(tmp_path / "shar"), "max_duration": 2.5, "dev": None}
    for train_sets, needs_text, ids in (
        (("a", "b"), True, [["b-noise-0"], ["a-noise-1", "a-noise-0"]]),
        (("a", "b"), False, [["b-noise-0"]]),
        (("a",), True, [["a-noise-1", "a-noise-0"]]),
        (("b",), True, [["b-noise-0"]]),
    ):
        batches = batches_of(
            build_setup(change(config, data=dict(train=train_sets, **data))), needs_text
        )
        assert [[cut.id for cut in batch["cuts"]] for batch in batches] == ids


@contextlib.contextmanager
def little_memory(spare):
    """Limit this process to ``spare`` bytes more than it uses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    resource.setrlimit(resource.RLIMIT_AS, (used * 1024 + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_a_batch_that_does_not_fit_is_named_before_the_first_update(only, tmp_path):
    """Attention over one cut of 240 s needs more than 1 GB."""
    cuts = noise_cuts(tmp_path, [1.0, 240.0], ["ONE", "TWO"])
    write_shar(cuts, tmp_path / "shar/train")
    config = only("ctc", memory_probe=True)
    config = change(config, data=dict(shar_dir=str(tmp_path / "shar"), dev=None))
    text = (
        r"batch of 240.0 s.*: 1 cut of [0-9.]+ s, the longest noise-1. "
        r"Lower data.max_duration \(5\)"
    )
    with (
        little_memory(500 * 2**20),
        pytest.raises(OutOfMemoryError, match=text) as e,
    ):
        train(config)
    assert "remove this cut" in str(e.value)
    assert not (Path(config.exp_dir) / "metrics.jsonl").exists()


def test_other_errors_are_not_replaced():
    batch = {"feature_lens": torch.tensor([5])}
    with pytest.raises(RuntimeError, match="^shapes differ$"):
        with explain_out_of_memory(batch, 1.0):
            raise RuntimeError("shapes differ")
