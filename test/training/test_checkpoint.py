"""Content of checkpoints; damaged files and full disks."""

import dataclasses
from pathlib import Path

import pytest
import torch
from dummies import full_disk

from icefall_kd.core.config import ModelConfig, config_differences, to_dict
from icefall_kd.training.checkpoint import (
    list_checkpoints,
    load_newest_checkpoint,
)
from icefall_kd.training.run import train
from icefall_kd.transducer.checkpoint import (
    load_checkpoint,
    load_model,
    pack_bytes,
    save_checkpoint,
    save_pretrained,
    unpack_bytes,
)
from icefall_kd.transducer.model import build_model


def assert_plain_types(value, where="checkpoint"):
    """Assert that ``torch.load(weights_only=True)`` can load the value."""
    if isinstance(value, dict):
        for key, item in value.items():
            assert isinstance(key, (str, int)), where
            assert_plain_types(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            assert_plain_types(item, where)
    else:
        plain = (torch.Tensor, str, int, float, bool, type(None))
        assert type(value) in plain, f"{where}: {type(value)}"


def test_a_training_checkpoint_has_only_tensors_and_plain_types(finished):
    assert_plain_types(load_newest_checkpoint(finished.exp_dir))


def test_the_checkpoint_before_a_damaged_one_is_loaded(finished, caplog):
    config = dataclasses.replace(finished, num_epochs=2)
    train(config)
    path = list_checkpoints(config.exp_dir, "epoch")[0][1]
    path.write_bytes(path.read_bytes()[:1000])
    assert load_newest_checkpoint(config.exp_dir)["state"]["epoch"] == 1
    assert "epoch-2.pt: damaged" in caplog.text
    train(config)  # resumes from there
    assert load_newest_checkpoint(config.exp_dir)["state"]["epoch"] == 2


def test_flipped_bits_are_detected(tmp_path, caplog):
    """torch.load reads damaged weights without an error."""
    for epoch in (1, 2):
        save_checkpoint(
            tmp_path / f"epoch-{epoch}.pt",
            {
                "model": {"w": torch.arange(3000.0), "b": torch.ones(7)},
                "optimizer": {"lr": 0.1},
                "state": {"step": 10 * epoch},
            },
        )
    path = tmp_path / "epoch-2.pt"
    intact, expected = path.read_bytes(), load_checkpoint(path)
    weights = intact.index(torch.arange(9.0, 19.0).numpy().tobytes())
    found = 0
    for position in (weights, *range(0, len(intact), 61)):
        flipped = bytearray(intact)
        flipped[position] ^= 0x04
        path.write_bytes(flipped)
        try:  # some bits, such as a date, change nothing that is read
            read = load_checkpoint(path)
            assert torch.equal(read["model"]["w"], expected["model"]["w"]), position
            assert read["state"] == expected["state"], position
        except ValueError:
            found += 1
            assert load_newest_checkpoint(tmp_path)["state"]["step"] == 10
            assert "epoch-2.pt: damaged" in caplog.text
    assert found > 0.9 * len(intact) / 61


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9, 0.999])
def test_truncated_files_are_detected(tmp_path, share):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"model": {"w": torch.arange(3000.0)}})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"a.pt: damaged.*delete this one"):
        load_checkpoint(path)


@pytest.mark.parametrize("num_bytes", [1, 3000, 20000])
def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, num_bytes):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"model": {"w": torch.ones(2)}})
    with full_disk(num_bytes), pytest.raises(OSError, match="a.pt: .*disk space"):
        save_checkpoint(path, {"model": {"w": torch.zeros(10000)}})
    assert load_checkpoint(path)["model"]["w"].tolist() == [1.0, 1.0]
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_run_stopped_by_a_full_disk_resumes_after_space_is_freed(finished):
    config, exp_dir = dataclasses.replace(finished, num_epochs=2), finished.exp_dir
    leftover = Path(exp_dir) / ".77.partial.epoch-2.pt"  # of a killed process
    leftover.write_bytes(b"x")
    with full_disk(100_000), pytest.raises(OSError, match="epoch-2.pt: "):
        train(config)
    assert not list(Path(exp_dir).glob(".*.partial.*"))
    assert load_newest_checkpoint(exp_dir)["state"]["epoch"] == 1
    train(config)
    assert load_newest_checkpoint(exp_dir)["state"]["epoch"] == 2


def test_an_old_damaged_epoch_does_not_stop_the_run(finished, caplog):
    config = dataclasses.replace(finished, keep_optimizer=1, num_epochs=2)
    train(config)
    path = Path(config.exp_dir) / "epoch-1.pt"
    path.write_bytes(path.read_bytes()[:1000])
    train(dataclasses.replace(config, num_epochs=3))
    assert load_newest_checkpoint(config.exp_dir)["state"]["epoch"] == 3
    assert "epoch-1.pt: damaged" in caplog.text


def test_only_damaged_checkpoints_are_an_error(tmp_path):
    assert load_newest_checkpoint(tmp_path) is None
    (tmp_path / "epoch-1.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"damaged: \['epoch-1.pt'\]"):
        load_newest_checkpoint(tmp_path)


def test_files_that_are_no_checkpoints_are_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "a.pt")
    torch.save({"weights": 1}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="has no 'model'"):
        load_checkpoint(tmp_path / "b.pt")


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"model": {"w": torch.ones(2)}})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, {"model": lambda: None})
    assert load_checkpoint(path)["model"]["w"].tolist() == [1.0, 1.0]
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_packed_bytes_unpack_to_the_same_bytes(tmp_path):
    assert unpack_bytes(pack_bytes(b"\x00\xffabc")) == b"\x00\xffabc"
    assert pack_bytes(None) is None and unpack_bytes(None) is None


def test_weights_of_another_model_are_rejected(config, tmp_path):
    small: ModelConfig = config.model
    other = dataclasses.replace(small, joiner_dim=20)
    weights = build_model(small).state_dict()
    save_pretrained(tmp_path / "a.pt", weights, small, None, {"epoch": 3})
    model, tokenizer, info = load_model(tmp_path / "a.pt")
    assert tokenizer is None and info == {"epoch": 3}
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
    save_pretrained(tmp_path / "b.pt", weights, other, None, {})
    with pytest.raises(ValueError, match=r"b.pt: weights do not fit.*joiner"):
        load_model(tmp_path / "b.pt")


def test_config_differences_have_the_full_option_name():
    here = {"model": {"a": 1, "b": [1, 2]}, "seed": 1}
    there = {"model": {"a": 1, "b": [1]}, "extra": 2, "seed": 1}
    assert config_differences(here, there) == [
        "model.b: [1] -> [1, 2]",
        "extra: 2 -> None",
    ]
    assert config_differences(to_dict(ModelConfig()), to_dict(ModelConfig())) == []
