"""The training loop on a tiny student, real losses and a real Shar."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from dummies import noise_cuts
from run_metrics import metrics
from training_runs import Stop, final, stop_after

from icefall_kd.core.config import to_dict
from icefall_kd.data.gate import filter_cuts
from icefall_kd.data.shar import write_shar
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.training import loop
from icefall_kd.training.checkpoint import average_epochs, write_average
from icefall_kd.training.optim import clip_gradients
from icefall_kd.training.run import train
from icefall_kd.transducer.checkpoint import load_checkpoint, load_model


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_all_terms_train_and_the_loss_falls(config):
    config = dataclasses.replace(config, num_epochs=4)
    train(config)
    lines = metrics(config)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    for name in ("loss", "embedding", "transducer.pruned", "ctc", "embedding.wise_l1"):
        assert all(math.isfinite(line[name]) for line in lines)
    dev = [line["loss"] for line in metrics(config, "dev")]
    assert len(dev) == 4 and dev[-1] < dev[0]
    exp_dir = Path(config.exp_dir)
    assert (exp_dir / "done").exists() and (exp_dir / "config.yaml").exists()
    assert "commit" in json.loads((exp_dir / "environment.json").read_text())


@pytest.fixture
def taken(monkeypatch):
    """The ids of the cuts of every batch trained on, a list for each run."""
    runs = []
    start, original = loop.Trainer.run, loop.Trainer._train_batch

    def run(self):
        runs.append([])
        start(self)

    def train_batch(self, batch):
        runs[-1].append((self.state.epoch, [cut.id for cut in batch["cuts"]]))
        return original(self, batch)

    monkeypatch.setattr(loop.Trainer, "run", run)
    monkeypatch.setattr(loop.Trainer, "_train_batch", train_batch)
    return runs


@pytest.mark.parametrize(
    "batches, mix", [(3, {}), (6, {}), (9, {}), (5, {"pool": 0.25})]
)
def test_resume_equals_uninterrupted(
    config, tmp_path, monkeypatch, taken, batches, mix
):
    data = dataclasses.replace(config.data, mix=mix)
    config = dataclasses.replace(config, save_every_n=2, data=data)
    train(config)
    broken = dataclasses.replace(config, exp_dir=str(tmp_path / "broken"))
    with monkeypatch.context() as m:
        stop_after(m, batches)
        with pytest.raises(Stop):
            train(broken)
    train(broken)
    whole, first, rest = taken
    for epoch in range(2):
        ids = [i for e, ids in whole if e == epoch for i in ids]
        new = sorted(id for id in ids if id.startswith("train"))
        assert new == sorted(f"train-noise-{i}" for i in range(12))
        assert len(ids) - len(new) == (4 if mix else 0)  # a quarter of all
    assert first == whole[: len(first)] and rest == whole[-len(rest) :]
    assert len(whole) <= len(first) + len(rest) < len(whole) + config.save_every_n
    assert metrics(broken) == metrics(config)
    assert metrics(broken, "dev") == metrics(config, "dev")
    there, here = final(config), final(broken)
    assert_same_weights(there["model"], here["model"])
    assert_same_weights(there["model_avg"], here["model_avg"])
    assert_same_weights(there["heads"], here["heads"])
    assert there["state"]["step"] == here["state"]["step"]


def test_a_finished_run_is_left_alone(config):
    config = dataclasses.replace(config, num_epochs=1)
    train(config)
    before = {p: p.stat().st_mtime_ns for p in Path(config.exp_dir).iterdir()}
    train(config)
    assert {p: p.stat().st_mtime_ns for p in Path(config.exp_dir).iterdir()} == before


def test_a_finished_run_that_goes_on_is_not_done(config, monkeypatch):
    config = dataclasses.replace(config, num_epochs=1)
    train(config)
    monkeypatch.setattr(loop.Trainer, "run", lambda trainer: None)
    train(dataclasses.replace(config, num_epochs=2))
    assert not (Path(config.exp_dir) / "done").exists()


def test_a_term_of_weight_zero_is_the_baseline(only, tmp_path):
    baseline = only("transducer", num_epochs=1, exp_dir=str(tmp_path / "baseline"))
    with_zero = only("transducer", "embedding", num_epochs=1)
    off = dataclasses.replace(with_zero.terms.embedding, weight=0.0)
    terms = dataclasses.replace(with_zero.terms, embedding=off)
    with_zero = dataclasses.replace(with_zero, terms=terms)
    train(baseline)
    train(with_zero)
    assert_same_weights(final(baseline)["model"], final(with_zero)["model"])


def test_pretraining_needs_no_text_and_leaves_the_other_parts_alone(only, tmp_path):
    config = only("embedding", num_epochs=1)
    data = dataclasses.replace(config.data, train=("train", "pool"), bpe_model=None)
    config = dataclasses.replace(config, data=data)
    train(config)
    trained = final(config)
    assert trained["bpe_model"] is None
    other = dataclasses.replace(config, exp_dir=str(tmp_path / "b"), num_epochs=2)
    train(other)
    later = final(other)["model"]
    for name, value in trained["model"].items():
        if name.startswith(("decoder", "joiner", "simple", "ctc")):
            assert torch.equal(value, later[name]), name
    moved = [k for k in later if not torch.equal(later[k], trained["model"][k])]
    assert any(k.startswith("encoder_embed.") for k in moved)
    assert any(k.startswith("encoder.") for k in moved)


def test_what_the_gate_keeps_of_a_faulty_corpus_trains(only, tmp_path):
    texts = ["ONE TWO", "", "TWO " * 40, "THREE", "FOUR FIVE", "SIX", "ONE", "TEN"]
    durations = [1.0, 1.1, 0.9, 0.05, 1.2, 1.3, 35.0, 1.4]
    config = only("transducer", "ctc", num_epochs=1)
    tokenize = Tokenizer(config.data.bpe_model).encode
    cuts = noise_cuts(tmp_path, durations, texts)
    kept, drops = filter_cuts([*cuts, cuts["noise-0"]], tokenize=tokenize)
    assert sorted(drop.reason for drop in drops) == [
        "duplicate_id",
        "empty_text",
        "too_few_frames",
        "too_long",
        "too_short",
    ]
    write_shar(kept, tmp_path / "shar/train")
    data = dataclasses.replace(config.data, shar_dir=str(tmp_path / "shar"), dev=None)
    train(dataclasses.replace(config, data=data))
    assert final(config)["state"]["bad_total"] == 0
    for line in metrics(config):
        assert line["transducer.skipped"] == line["ctc.skipped"] == 0
    assert metrics(config, "epoch") == [
        {"kind": "epoch", "step": final(config)["state"]["step"], "epoch": 1, "cuts": 4}
    ]
    assert all(math.isfinite(line["loss"]) for line in metrics(config))


def test_fine_tuning_starts_from_the_pretrained_encoder(only, tmp_path):
    pretrain = only("embedding", num_epochs=1)
    train(pretrain)
    pretrained = tmp_path / "pretrained.pt"
    write_average(pretrain.exp_dir, 0, 1, pretrained)
    finetune = only(
        "transducer",
        init_encoder=str(pretrained),
        exp_dir=str(tmp_path / "finetune"),
        num_epochs=1,
    )
    starts = []
    original = loop.Trainer.run

    def run(self):
        starts.append({k: v.clone() for k, v in self.model.state_dict().items()})
        original(self)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(loop.Trainer, "run", run)
        train(finetune)
    for name, value in load_checkpoint(pretrained)["model"].items():
        same = torch.equal(starts[0][name], value)
        assert same == name.startswith(("encoder.", "encoder_embed.")) or same


def test_a_frozen_encoder_waits_for_the_layers_behind_it(only, tmp_path):
    pretrain = only("embedding", num_epochs=1)
    train(pretrain)
    pretrained = tmp_path / "pretrained.pt"
    write_average(pretrain.exp_dir, 0, 1, pretrained)
    frozen = only(
        "transducer", "ctc", init_encoder=str(pretrained), exp_dir=str(tmp_path / "f")
    )
    optim = dataclasses.replace(frozen.optim, frozen_batches=10**6)
    train(dataclasses.replace(frozen, optim=optim))
    before = load_checkpoint(pretrained)["model"]
    after = final(frozen)["model"]
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    encoder = ("encoder.", "encoder_embed.")
    # Chunk sizes are drawn, not learned: nothing of the encoder changes.
    assert not [k for k in moved if k.startswith(encoder)]
    assert "ctc_output.1.weight" in moved and "joiner.output_linear.weight" in moved

    # Thawed after two batches, and resumed behind that: as in one piece.
    optim = dataclasses.replace(frozen.optim, frozen_batches=2, encoder_lr_scale=0.5)
    whole = dataclasses.replace(frozen, optim=optim, exp_dir=str(tmp_path / "w"))
    train(whole)
    parts = dataclasses.replace(whole, exp_dir=str(tmp_path / "p"))
    train(dataclasses.replace(parts, num_epochs=1))
    train(parts)
    assert_same_weights(final(whole)["model"], final(parts)["model"])
    moved = {k for k in before if not torch.equal(before[k], final(whole)["model"][k])}
    assert any(k.startswith("encoder.") for k in moved)


def test_unlabelled_cuts_beside_labelled_ones_do_not_disturb_text_terms(only):
    config = only("transducer", "embedding", num_epochs=1)
    data = dataclasses.replace(config.data, train=("train", "pool"))
    train(dataclasses.replace(config, data=data))
    (line,) = metrics(config, "epoch")
    assert line["cuts"] == 18 and "embedding.skipped.unlabelled" not in line
    assert line["transducer.skipped.unlabelled"] == pytest.approx(6 / 18)
    assert all(math.isfinite(line["loss"]) for line in metrics(config))


def test_gradients_are_clipped_to_the_limit():
    p = torch.nn.Parameter(torch.zeros(4))
    p.grad = torch.full((4,), 3.0)
    assert clip_gradients([p], 0.0) == 6.0 and p.grad[0] == 3.0
    assert clip_gradients([p], 2.0) == 6.0
    assert p.grad.norm().item() == pytest.approx(2.0)
    assert clip_gradients([torch.nn.Parameter(torch.zeros(1))], 1.0) == 0.0


def test_autocast_to_bfloat16_trains(config):
    train(dataclasses.replace(config, num_epochs=1, amp="bf16"))
    assert all(math.isfinite(line["loss"]) for line in metrics(config))


def test_average_is_the_mean_of_the_samples_between_two_epochs(config, monkeypatch):
    config = dataclasses.replace(config, num_epochs=3, average_period=1)
    seen = []
    original = loop.RunningMean.sample

    def sample(self, model):
        seen.append({k: v.double().clone() for k, v in model.state_dict().items()})
        original(self, model)

    monkeypatch.setattr(loop.RunningMean, "sample", sample)
    train(config)
    first = load_checkpoint(Path(config.exp_dir) / "epoch-1.pt")["avg_samples"]
    mean = average_epochs(config.exp_dir, 3, 2)
    for name, value in mean.items():
        if value.is_floating_point():
            slow = torch.stack([s[name] for s in seen[first:]]).mean(0)
            torch.testing.assert_close(value, slow.float(), rtol=1e-6, atol=1e-7)


def test_old_epochs_keep_the_model_alone(config):
    config = dataclasses.replace(config, num_epochs=3, keep_optimizer=1)
    train(config)
    exp_dir = Path(config.exp_dir)
    assert "optimizer" in load_checkpoint(exp_dir / "epoch-3.pt")
    assert "optimizer" not in load_checkpoint(exp_dir / "epoch-1.pt")
    assert average_epochs(exp_dir, 3, 2).keys() == final(config)["model"].keys()


def test_the_averaged_file_is_all_that_decoding_needs(config, tmp_path):
    config = dataclasses.replace(config, num_epochs=1)
    train(config)
    path = tmp_path / "pretrained.pt"
    write_average(config.exp_dir, 1, 1, path)
    model, tokenizer, info = load_model(path)
    assert tokenizer.vocab_size == config.model.vocab_size
    assert not model.training and info["epoch"] == 1
    assert load_checkpoint(path)["model_config"] == to_dict(config.model)
    assert not any("head" in k or "proj.0" in k for k in load_checkpoint(path))
    with pytest.raises(ValueError, match=r"--avg 2: .* 1 to 1.*epoch-1.pt"):
        write_average(config.exp_dir, 1, 2, path)
