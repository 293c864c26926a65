"""Skipped batches and cuts, and the runs that they stop."""

import dataclasses
import json
import math
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dummies import noise_cuts
from run_metrics import metrics
from training_runs import Stop, change, final, stop_after

from icefall_kd.core.distributed import World
from icefall_kd.data.shar import write_shar
from icefall_kd.distill.term import TermOutput
from icefall_kd.training import loop, updates
from icefall_kd.training.checkpoint import load_newest_checkpoint
from icefall_kd.training.optim import make_scaler
from icefall_kd.training.run import train
from icefall_kd.training.skipped import SkippedCuts, TrainingStoppedError


def poison(monkeypatch, cut_ids):
    """Replace the features of these cuts by NaN."""
    original = updates.move_to_device

    def move_to_device(batch, device):
        batch = original(batch, device)
        for i, cut in enumerate(batch["cuts"]):
            if cut.id in cut_ids or "all" in cut_ids:
                batch["features"][i] = float("nan")
        return batch

    monkeypatch.setattr(updates, "move_to_device", move_to_device)


def bad_batches(config):
    lines = (Path(config.exp_dir) / "bad_batches.0.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_finite(checkpoint):
    for part in ("model", "model_avg", "heads"):
        assert all(torch.isfinite(v).all() for v in checkpoint[part].values())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_cut_with_nan_features_is_skipped_and_named(config, monkeypatch, accumulate):
    """The other batches of its update are skipped too."""
    optim = dict(accumulate=accumulate)
    config = change(
        config, num_epochs=1, average_period=1, data=dict(dev=None), optim=optim
    )
    poison(monkeypatch, {"train-noise-10"})
    train(config)
    last = final(config)
    state = last["state"]
    assert state["bad_total"] == 1 and state["bad_in_row"] == 0
    assert state["step"] == 6 / accumulate - 1
    assert_finite(last)
    lines = bad_batches(config)
    (bad,) = (line for line in lines if line["suspects"])
    assert bad["suspects"] == ["train-noise-10"] and len(bad["cuts"]) > 1
    assert [line["loss"] == "nan" for line in lines].count(True) == 1
    assert len({line["batch"] for line in lines}) == len(lines) == accumulate
    (epoch,) = metrics(config, "epoch")
    skipped = sum(len(line["cuts"]) for line in lines)
    assert epoch["ctc.skipped.not_finite"] == pytest.approx(skipped / 12)


def test_a_cut_with_a_nan_target_is_skipped_and_named(only, data_dir, tmp_path):
    """A flipped bit in a float16 shard has this effect."""
    shar = Path(shutil.copytree(data_dir / "shar", tmp_path / "shar"))
    tar = shar / "train/teacher_a.000001.tar"
    with tarfile.open(tar) as file:
        member = next(m for m in file if m.name.endswith(".npy"))
        position = member.offset_data + member.size - 20
    content = bytearray(tar.read_bytes())
    content[position : position + 2] = np.float16("nan").tobytes()
    tar.write_bytes(content)
    config = only("embedding", num_epochs=1)
    config = change(config, data=dict(shar_dir=str(shar), dev=None))
    train(config)
    assert_finite(final(config))
    (line,) = bad_batches(config)
    assert line["suspects"] == [member.name[: -len(".npy")]]


def test_a_batch_with_a_nonfinite_gradient_is_skipped(config, monkeypatch):
    config = dataclasses.replace(config, num_epochs=1, average_period=1)
    original = loop.Trainer._train_batch

    def train_batch(self, batch, is_last):
        weight = self.params[0]
        hook = weight.register_hook(
            lambda grad: grad / 0 if self.state.batch == 2 else grad
        )
        original(self, batch, is_last)
        hook.remove()

    monkeypatch.setattr(loop.Trainer, "_train_batch", train_batch)
    train(config)
    assert final(config)["state"]["bad_total"] == 1
    assert_finite(final(config))
    (line,) = bad_batches(config)
    assert math.isfinite(float(line["loss"])) and line["batch"] == 3
    assert not math.isfinite(float(line["grad_norm"]))


LONG = "ONE TWO " * 40  # more tokens than 1 s has frames


@pytest.mark.parametrize(
    "texts, message",
    [
        ([""] * 4, "4 of 4 cuts.*empty_text: 4 cuts.*noise-"),
        ([None] * 4, "4 of 4 cuts.*empty_text: 4 cuts"),
        ([LONG] * 4, "4 of 4 cuts.*too_few_frames: 4 cuts.*noise-"),
        (["ONE", LONG, "", None], "3 of 4 cuts.*empty_text: 2.*too_few_frames: 1"),
    ],
)
def test_unusable_transcripts_are_rejected_before_training(
    only, tmp_path, texts, message
):
    cuts = noise_cuts(tmp_path, [1.0, 1.1, 1.2, 1.3], texts)
    write_shar(cuts, tmp_path / "shar/train")
    config = only("transducer", "ctc", num_epochs=1, save_every_n=1)
    with pytest.raises(ValueError, match=message):
        train(change(config, data=dict(shar_dir=str(tmp_path / "shar"), dev=None)))
    assert not list(Path(config.exp_dir).glob("*.pt"))


def test_a_term_that_used_no_cut_stops_the_run(only):
    config = only("embedding", "ctc", num_epochs=1)
    message = "term 'ctc' skipped 6 of 6 cuts.*unlabelled: 6.*leave the term out"
    with pytest.raises(TrainingStoppedError, match=message):
        train(change(config, data=dict(train=("unlabelled",), dev=None)))
    assert not list(Path(config.exp_dir).glob("*.pt"))


def test_shares_of_skipped_cuts_are_logged_by_reason_and_survive_a_stop(
    only, monkeypatch, caplog
):
    config = only("embedding", "ctc", num_epochs=1, save_every_n=1)
    config = change(
        config, data=dict(train=("train", "unlabelled"), dev=None, max_duration=1.6)
    )
    with monkeypatch.context() as m:
        stop_after(m, 4)
        with pytest.raises(Stop):
            train(config)
    caplog.set_level("INFO")
    train(config)
    (line,) = metrics(config, "epoch")
    assert line["cuts"] == 12 + 6  # of train and of unlabelled, without text
    assert line["ctc.skipped.unlabelled"] == pytest.approx(6 / 18)
    assert "embedding.skipped.unlabelled" not in line
    assert "epoch 1: 18 cuts, ctc.skipped.unlabelled 33.3 %" in caplog.text


def test_a_term_that_used_none_of_1000_cuts_stops_the_epoch():
    cuts = [SimpleNamespace(id=f"cut-{i}", supervisions=[1]) for i in range(10)]
    output = TermOutput(torch.zeros(()), 0, skipped={"no_text": list(range(10))})
    skipped = SkippedCuts(["ctc"], World(0, 1, torch.device("cpu")), "error")
    for _ in range(99):
        skipped.add({"cuts": cuts}, {"ctc": output})
    skipped.check(3, complete=False)  # too few cuts
    skipped.add({"cuts": cuts}, {"ctc": output})
    with pytest.raises(TrainingStoppedError, match="epoch 3: term 'ctc' .* 1000 of 1"):
        skipped.check(3, complete=False)


def test_a_term_that_skipped_over_half_of_its_cuts_stops_the_run():
    cuts = [SimpleNamespace(id=f"cut-{i}", supervisions=[1]) for i in range(10)]
    for count, is_error in ((5, False), (6, True)):
        output = TermOutput(torch.ones(()), 1, skipped={"no_target": range(count)})
        skipped = SkippedCuts(["hidden"], World(0, 1, torch.device("cpu")), "error")
        skipped.add({"cuts": cuts}, {"hidden": output})
        if is_error:
            with pytest.raises(TrainingStoppedError, match="no_target: 6, for example"):
                skipped.end_epoch(1, 1)
        else:
            shares = skipped.end_epoch(1, 1)
            assert shares == {"cuts": 10.0, "hidden.skipped.no_target": 0.5}


def test_an_epoch_without_a_batch_stops_the_run():
    skipped = SkippedCuts(["ctc"], World(0, 1, torch.device("cpu")), "error")
    with pytest.raises(TrainingStoppedError, match="epoch 2 had no batch.*fewer cuts"):
        skipped.end_epoch(2, 0)
    # A checkpoint of an older version has batches, but no counts.
    assert skipped.end_epoch(2, 5) == {"cuts": 0.0}


@pytest.fixture
def scaled(config, monkeypatch):
    """Return a run with a scaled loss, as fp16 on CUDA needs."""
    if not hasattr(torch.amp, "GradScaler"):
        pytest.skip("this torch scales losses only on CUDA")
    monkeypatch.setattr(
        loop, "make_scaler", lambda enabled: torch.amp.GradScaler("cpu")
    )
    return dataclasses.replace(config, num_epochs=1, save_every_n=1)


def test_the_loss_scale_starts_at_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # the scaler asks
    scaler = make_scaler(True)
    assert scaler.is_enabled() and scaler.get_scale() == 1.0


def test_a_cut_with_nan_features_is_skipped_with_a_scaled_loss(scaled, monkeypatch):
    poison(monkeypatch, {"train-noise-3"})
    train(change(scaled, data=dict(dev=None)))
    assert final(scaled)["state"]["bad_total"] == 1
    (line,) = bad_batches(scaled)
    assert line["suspects"] == ["train-noise-3"]


def test_gradients_that_overflow_at_every_loss_scale_stop_the_run(scaled, monkeypatch):
    saved, original = [], loop.save_checkpoint
    monkeypatch.setattr(
        loop,
        "save_checkpoint",
        lambda path, content: (saved.append(path.name), original(path, content)),
    )
    train_batch = loop.Trainer._train_batch

    def overflow(self, batch, is_last):
        if self.state.step == 2 and not self.params[0]._backward_hooks:
            self.params[0].register_hook(lambda grad: grad / 0)
        train_batch(self, batch, is_last)

    monkeypatch.setattr(loop.Trainer, "_train_batch", overflow)
    long = dataclasses.replace(scaled, num_epochs=50)
    with pytest.raises(TrainingStoppedError, match="fp16 gradients overflow"):
        train(long)
    # No checkpoint is written without an update.
    steps = [name for name in saved if name.startswith("checkpoint-")]
    assert steps == ["checkpoint-1.pt", "checkpoint-2.pt"]


def test_too_many_bad_batches_stop_the_run_and_are_named(config, monkeypatch):
    config = dataclasses.replace(config, max_bad_batches=2, save_every_n=1)
    with monkeypatch.context() as m:
        stop_after(m, 2)
        with pytest.raises(Stop):
            train(config)
    poison(monkeypatch, {"all"})
    message = r"2 updates in a row.*\d+ suspects: train-noise-\d+, .*bad_batches"
    with pytest.raises(TrainingStoppedError, match=message):
        train(config)
    last = load_newest_checkpoint(config.exp_dir)
    assert last["state"]["step"] == 2 and last["avg_samples"] == 1
    assert_finite(last)


def test_nonfinite_weights_are_never_saved(config, monkeypatch):
    config = dataclasses.replace(config, save_every_n=1)
    original = loop.Trainer._update

    def update(self):
        audio = original(self)
        if self.state.step == 3:
            self.params[0].data[0] = float("inf")
        return audio

    monkeypatch.setattr(loop.Trainer, "_update", update)
    with pytest.raises(TrainingStoppedError, match="not finite after update 3"):
        train(config)
    last = load_newest_checkpoint(config.exp_dir)
    assert last["state"]["step"] == 2
    assert_finite(last)
