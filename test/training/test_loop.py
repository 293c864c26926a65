"""Training runs of a tiny student on small Shar sets."""

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from dummies import noise_cuts
from run_metrics import metrics
from training_runs import Stop, change, final, stop_after

from icefall_kd.core.config import to_dict
from icefall_kd.data.gate import filter_cuts
from icefall_kd.data.shar import write_shar
from icefall_kd.data.tokens import Tokenizer
from icefall_kd.distill import TermsConfig
from icefall_kd.training import loop, student
from icefall_kd.training.checkpoint import average_epochs, write_average
from icefall_kd.training.optim import clip_gradients
from icefall_kd.training.run import train
from icefall_kd.training.setup import build_setup
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
    for name in (
        "loss",
        "embedding",
        "transducer.pruned",
        "ctc",
        "embedding.teacher_a_l1",
    ):
        assert all(math.isfinite(line[name]) for line in lines)
    dev = [line["loss"] for line in metrics(config, "dev")]
    assert len(dev) == 4 and dev[-1] < dev[0]
    exp_dir = Path(config.exp_dir)
    assert (exp_dir / "done").exists() and (exp_dir / "config.yaml").exists()
    assert "commit" in json.loads((exp_dir / "environment.json").read_text())


@pytest.fixture
def taken(monkeypatch):
    """Return (epoch, cut ids) of every batch, a list for each run."""
    runs = []
    start, original = loop.Trainer.run, loop.Trainer._train_batch

    def run(self):
        runs.append([])
        start(self)

    def train_batch(self, batch, is_last):
        runs[-1].append((self.state.epoch, [cut.id for cut in batch["cuts"]]))
        original(self, batch, is_last)

    monkeypatch.setattr(loop.Trainer, "run", run)
    monkeypatch.setattr(loop.Trainer, "_train_batch", train_batch)
    return runs


@pytest.mark.parametrize(
    "stops, mix, accumulate", [((3, 6, 9), {}, 1), ((5,), {"unlabelled": 0.25}, 2)]
)
def test_resume_equals_uninterrupted(
    config, tmp_path, monkeypatch, taken, stops, mix, accumulate
):
    optim = dict(accumulate=accumulate)
    config = change(config, save_every_n=2, data=dict(mix=mix), optim=optim)
    train(config)
    uninterrupted = taken.pop()
    for epoch in range(2):
        ids = [i for e, ids in uninterrupted if e == epoch for i in ids]
        new = sorted(id for id in ids if id.startswith("train"))
        assert new == sorted(f"train-noise-{i}" for i in range(12))
        assert len(ids) - len(new) == (4 if mix else 0)  # a quarter of all
    batches = Counter(epoch for epoch, _ in uninterrupted)
    steps = [math.ceil(n / accumulate) for n in batches.values()]
    assert final(config)["state"]["step"] == sum(steps)
    for batches in stops:
        stopped = dataclasses.replace(config, exp_dir=str(tmp_path / f"{batches}"))
        with monkeypatch.context() as m:
            stop_after(m, batches)
            with pytest.raises(Stop):
                train(stopped)
        train(stopped)
        rest, first = taken.pop(), taken.pop()
        assert first == uninterrupted[: len(first)]
        assert rest == uninterrupted[-len(rest) :]
        repeated = len(first) + len(rest) - len(uninterrupted)
        assert 0 <= repeated < config.save_every_n * accumulate
        assert metrics(stopped) == metrics(config)
        assert metrics(stopped, "dev") == metrics(config, "dev")
        there, here = final(config), final(stopped)
        for part in ("model", "model_avg", "heads"):
            assert_same_weights(there[part], here[part])
        assert there["state"]["step"] == here["state"]["step"]


def test_a_finished_run_stays_unchanged(finished):
    files = list(Path(finished.exp_dir).iterdir())
    before = {p: p.stat().st_mtime_ns for p in files}
    train(finished)
    assert {p: p.stat().st_mtime_ns for p in files} == before
    assert list(Path(finished.exp_dir).iterdir()) == files


def test_a_finished_run_with_more_epochs_is_no_longer_done(finished, monkeypatch):
    monkeypatch.setattr(loop.Trainer, "run", lambda trainer: None)
    train(dataclasses.replace(finished, num_epochs=2))
    assert not (Path(finished.exp_dir) / "done").exists()


def test_a_term_of_weight_zero_is_the_baseline(only, tmp_path):
    baseline = only("transducer", num_epochs=1, exp_dir=str(tmp_path / "baseline"))
    with_zero = only("transducer", "embedding", num_epochs=1)
    off = dataclasses.replace(with_zero.terms.embedding, weight=0.0)
    with_zero = change(with_zero, terms=dict(embedding=off))
    train(baseline)
    train(with_zero)
    assert_same_weights(final(baseline)["model"], final(with_zero)["model"])


def test_pretraining_needs_no_text_and_trains_only_the_encoder(only, tmp_path):
    config = only("embedding", num_epochs=1)
    config = change(config, data=dict(train=("train", "unlabelled"), bpe_model=None))
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


def test_cuts_that_the_gate_keeps_are_trained_on(only, tmp_path):
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
    train(change(config, data=dict(shar_dir=str(tmp_path / "shar"), dev=None)))
    assert final(config)["state"]["bad_total"] == 0
    for line in metrics(config):
        assert line["transducer.skipped"] == line["ctc.skipped"] == 0
    assert metrics(config, "epoch") == [
        {"kind": "epoch", "step": final(config)["state"]["step"], "epoch": 1, "cuts": 4}
    ]
    assert all(math.isfinite(line["loss"]) for line in metrics(config))


ENCODER = ("encoder.", "encoder_embed.")


def test_fine_tuning_starts_from_the_pretrained_encoder(only, pretrained, tmp_path):
    config = only(
        "transducer", init_encoder=str(pretrained), exp_dir=str(tmp_path / "b")
    )
    student = build_setup(config).student.model.state_dict()
    for name, value in load_checkpoint(pretrained)["model"].items():
        if name.startswith(ENCODER):
            assert torch.equal(student[name], value), name
        elif name.startswith("joiner."):
            assert not torch.equal(student[name], value), name


def moved_parameters(config, before):
    after = final(config)["model"]
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_frozen_encoder_does_not_move(only, pretrained, tmp_path):
    frozen = only(
        "transducer",
        "ctc",
        init_encoder=str(pretrained),
        exp_dir=str(tmp_path / "frozen"),
        num_epochs=1,
    )
    train(change(frozen, optim=dict(frozen_batches=10**6)))
    moved = moved_parameters(frozen, load_checkpoint(pretrained)["model"])
    # Chunk sizes are drawn, not learned: nothing of the encoder changes.
    assert not [name for name in moved if name.startswith(ENCODER)]
    assert "ctc_output.1.weight" in moved and "joiner.output_linear.weight" in moved


def test_a_run_resumed_with_a_thawed_encoder_equals_the_uninterrupted_run(
    only, pretrained, tmp_path
):
    config = only("transducer", "ctc", init_encoder=str(pretrained))
    optim = dict(frozen_batches=2, encoder_lr_scale=0.5)
    at_once = change(config, optim=optim, exp_dir=str(tmp_path / "at_once"))
    train(at_once)
    resumed = change(at_once, exp_dir=str(tmp_path / "resumed"))
    train(change(resumed, num_epochs=1))
    train(resumed)
    assert_same_weights(final(at_once)["model"], final(resumed)["model"])
    moved = moved_parameters(at_once, load_checkpoint(pretrained)["model"])
    assert any(name.startswith("encoder.") for name in moved)


def test_text_terms_skip_unlabelled_cuts(only):
    config = only("transducer", "embedding", num_epochs=1)
    train(change(config, data=dict(train=("train", "unlabelled"))))
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


@pytest.mark.parametrize("is_fast", [True, False])
def test_amp_auto_is_bfloat16_only_where_it_is_fast(is_fast, monkeypatch, caplog):
    monkeypatch.setattr(student, "has_fast_bf16", lambda: is_fast)
    cpu = torch.device("cpu")
    assert student.select_amp("auto", cpu) == ("bf16" if is_fast else "none")
    assert student.select_amp("none", cpu) == "none" and not caplog.text
    assert student.select_amp("bf16", cpu) == "bf16"
    assert ("amp: auto" in caplog.text) == (not is_fast)


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


def test_old_epoch_checkpoints_keep_only_the_model(config):
    config = dataclasses.replace(config, num_epochs=3, keep_optimizer=1)
    train(config)
    exp_dir = Path(config.exp_dir)
    assert "optimizer" in load_checkpoint(exp_dir / "epoch-3.pt")
    assert "optimizer" not in load_checkpoint(exp_dir / "epoch-1.pt")
    assert average_epochs(exp_dir, 3, 2).keys() == final(config)["model"].keys()


def test_decoding_needs_only_the_averaged_file(finished, pretrained):
    model, tokenizer, info = load_model(pretrained)
    assert tokenizer.vocab_size == finished.model.vocab_size
    assert not model.training and info["epoch"] == 1
    saved = load_checkpoint(pretrained)
    assert saved["model_config"] == to_dict(finished.model)
    assert not any("head" in name or "proj.0" in name for name in saved)
    with pytest.raises(ValueError, match=r"--avg 2: .* 1 to 1.*epoch-1.pt"):
        write_average(finished.exp_dir, 1, 2, pretrained)


def with_embedding(config, **options):
    embedding = dataclasses.replace(config.terms.embedding, **options)
    return dataclasses.replace(config, terms=TermsConfig(embedding=embedding))


def test_a_resumed_run_draws_the_same_random_teachers(config, tmp_path):
    config = with_embedding(config, choose="random")
    train(dataclasses.replace(config, num_epochs=1))
    train(config)
    at_once = dataclasses.replace(config, exp_dir=str(tmp_path / "at_once"))
    train(at_once)
    lines, expected = metrics(config), metrics(at_once)
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, other in zip(lines, expected):
        assert line["embedding"] == pytest.approx(other["embedding"], rel=1e-5)
    found = final(config)["model"]
    for name, value in final(at_once)["model"].items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_averaged_teachers_of_different_dimensions_are_rejected(config):
    with pytest.raises(ValueError, match="terms.embedding.*different dimensions"):
        train(with_embedding(config, choose="average"))
