"""Missing, stale or wrong targets, and teachers that run during training."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import ranks
import torch
from lhotse import CutSet
from run_metrics import metrics
from shar_faults import rename_cuts, rewrite_cuts, rewrite_tar
from training_runs import Stop, assert_rejected, change, final, stop_after

from icefall_kd.bin import train as command
from icefall_kd.data.shar import fields_dir, write_shar
from icefall_kd.distill import TermsConfig
from icefall_kd.distill.embedding import EmbeddingConfig
from icefall_kd.fields.extract import extract
from icefall_kd.fields.format import info_path
from icefall_kd.fields.manage import remove_field
from icefall_kd.fields.reader import open_shar
from icefall_kd.training.config import parse_config
from icefall_kd.training.run import train
from icefall_kd.training.setup import build_setup
from icefall_kd.transducer.checkpoint import load_checkpoint

FIELD = "whisper_tiny_en"


@pytest.fixture
def faulty(only, data_dir, tmp_path):
    """Return a run with only the embedding term, and its sets, to be damaged."""
    shar = Path(shutil.copytree(data_dir / "shar", tmp_path / "shar"))
    return change(only("embedding", num_epochs=1), data=dict(shar_dir=str(shar))), shar


def ids_of(folder):
    return [cut.id for cut in open_shar(folder)]


def missing_shard(folder, ids):
    (folder / "teacher_a.000001.tar").unlink()
    return ids[5:10], "missing shards: 1, for example teacher_a.000001.tar"


def missing_arrays(folder, ids):
    tar, lost = folder / "teacher_a.000000.tar", ids[2:5]
    rewrite_tar(tar, lambda i: None if i in lost else i)
    return lost, "damaged shards: 1"


def renamed(folder, ids):
    rename_cuts(folder, "000001", lambda i: f"new-{i}")
    return [], "renamed: 5, for example new-train-noise-"


def shorter_audio(folder, ids):
    def edit(lines):
        return [re.sub(r'("duration": )[\d.]+', r"\g<1>0.7", x, count=1) for x in lines]

    rewrite_cuts(folder, "000002", edit)
    return ids[10:], "different audio: 2, for example train-noise-"


def another_recording(folder, ids):
    def edit(lines):
        return [x.replace('ng": {"id": "', 'ng": {"id": "re-', 1) for x in lines]

    rewrite_cuts(folder, "000000", edit)
    return ids[:5], "different audio: 5, for example train-noise-"


FAULTS = [missing_shard, missing_arrays, renamed, shorter_audio, another_recording]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_targets_are_rejected_before_training(faulty, fault):
    config, shar = faulty
    _, problem = fault(shar / "train", ids_of(shar / "train"))
    path = ranks.save_config(config, shar / "config.yaml")
    with pytest.raises(SystemExit) as e:
        command.main(["--config", path])
    assert re.match("train: .*/train: field 'teacher_[ab]' does not join", str(e.value))
    assert problem in str(e.value) and "data.missing: skip" in str(e.value)
    assert not Path(config.exp_dir).exists()


@pytest.mark.parametrize("fault", FAULTS[:4])
def test_skip_counts_missing_targets_and_trains_on_the_rest(faulty, fault, caplog):
    caplog.set_level("INFO")
    config, shar = faulty
    missing, problem = fault(shar / "train", ids_of(shar / "train"))
    train(change(config, data=dict(missing="skip", dev=None)))
    text, count = caplog.text, len(missing)
    before_training = text[: text.index("parameters in the student")]
    expected = f"train: field 'teacher_a': {count} of 12 cuts have no target"
    for part in (expected, problem, *missing):
        assert part in before_training
    lost = f"{count} of 12 utterances had no target in field 'teacher_a'"
    assert (lost in text[len(before_training) :]) == (count > 0)
    assert any("embedding.teacher_a_l1" in line for line in metrics(config))


def test_sets_with_and_without_the_field_train_together(faulty, caplog):
    config, shar = faulty
    for name in ("unlabelled", "dev"):
        info_path(shar / name, "teacher_a").unlink()
    config = change(config, data=dict(train=("unlabelled", "train"), missing="skip"))
    train(config)
    assert "unlabelled: field 'teacher_a': 6 of 6 cuts have no target" in caplog.text
    assert "dev: field 'teacher_a': 4 of 4 cuts have no target" in caplog.text
    (dev,) = metrics(config, "dev")
    assert "embedding.teacher_a_l1" not in dev and dev["embedding.teacher_b_l1"] > 0
    info_path(shar / "train", "teacher_a").unlink()
    with pytest.raises(
        FileNotFoundError, match="unlabelled: field 'teacher_a' is unfinished"
    ):
        build_setup(config)


def test_skip_rejects_another_layer(faulty):
    config, _ = faulty
    config = change(
        config, data=dict(missing="skip", expect={"teacher_a": {"layer": 3}})
    )
    with pytest.raises(ValueError, match="layer is None, wanted 3"):
        build_setup(config)


@pytest.mark.parametrize("option, choice", [("missing", "skip"), ("cache", "none")])
def test_an_unknown_choice_error_lists_the_choices(option, choice):
    with pytest.raises(ValueError, match=f"(?s)data.{option}.*{choice}"):
        parse_config([f"--data.{option}=x"])


def test_a_rank_without_any_target_does_not_hang(faulty, tmp_path):
    """One of two processes often has a batch without targets."""
    config, shar = faulty
    for field in ("teacher_a", "teacher_b"):
        for number in ("000000", "000001"):
            (shar / f"train/{field}.{number}.tar").unlink()
    config = change(config, data=dict(missing="skip", max_duration=2.0))
    path = ranks.save_config(config, tmp_path / "config.yaml")
    with ranks.Job(ranks.run_command, (path,), tmp_path) as job:
        assert [job.end(rank) for rank in range(2)] == [0, 0], job.log(0)
    counted = [
        int(re.search(rf"rank {r}: (\d+) of \d+ .* 'teacher_a'", job.log(r))[1])
        for r in range(2)
    ]
    assert sum(counted) in (9, 10), "an odd cut at the end may be left out"
    assert len(metrics(config)) > 2
    saved = load_checkpoint(Path(config.exp_dir) / "epoch-1.pt")
    assert all(torch.isfinite(v).all() for v in saved["model"].values())


@pytest.fixture(scope="session")
def prompts(asterisk, tiny, tmp_path_factory):
    """Return Shar sets train and dev of real prompts, with the field of tiny.en."""
    root = tmp_path_factory.mktemp("prompts")
    cuts = [c for c in open_shar(asterisk / "data/shar/test") if 0.8 < c.duration < 2.0]
    for name, some in (("train", cuts[:12]), ("dev", cuts[12:15])):
        write_shar(CutSet.from_cuts(some), root / name, shard_size=5)
        extract(root / name, [tiny])
    return root


@pytest.fixture
def cached(only, prompts):
    """Return a run that reads the field of tiny.en."""
    config = only("embedding", num_epochs=2, save_every_n=2)
    losses = {"l1": 1.0, "cosine": 1.0}
    term = EmbeddingConfig(teachers={FIELD: 1.0}, losses=losses)
    config = dataclasses.replace(config, terms=TermsConfig(embedding=term))
    return change(config, data=dict(shar_dir=str(prompts)))


@pytest.fixture
def live(cached, tiny_dir, tmp_path):
    """Return the run of ``cached`` with tiny.en running during training."""
    config = dataclasses.replace(cached, exp_dir=str(tmp_path / "live"))
    return change(
        config, data=dict(cache="none", teachers={FIELD: {"model_dir": str(tiny_dir)}})
    )


def assert_same_losses(some, others, rel):
    assert len(some) == len(others) > 0
    for a, b in zip(some, others):
        assert a.keys() == b.keys()
        for name in set(a) - {"kind"}:
            assert a[name] == pytest.approx(b[name], rel=rel), (a["step"], name)


def test_live_losses_equal_those_of_the_cached_run(cached, live, caplog):
    caplog.set_level("INFO")
    train(cached)
    train(change(live, data=dict(num_workers=2)))
    assert f"statistics of '{FIELD}' are those of" in caplog.text
    assert len(metrics(live)) > 6
    for kind in ("train", "dev"):
        assert_same_losses(metrics(live, kind), metrics(cached, kind), 5e-3)


def test_a_live_run_resumes_exactly(live, tmp_path, monkeypatch):
    train(live)
    broken = dataclasses.replace(live, exp_dir=str(tmp_path / "broken"))
    with monkeypatch.context() as m:
        stop_after(m, 5)
        with pytest.raises(Stop):
            train(broken)
    train(broken)
    for kind in ("train", "dev"):
        assert metrics(broken, kind) == metrics(live, kind)
    a, b = final(live), final(broken)
    for part in ("model", "heads"):
        assert all(torch.equal(a[part][k], v) for k, v in b[part].items())


def test_statistics_of_a_live_teacher_come_from_a_sample_if_no_field_is_stored(
    cached, live, prompts, tmp_path, caplog
):
    caplog.set_level("INFO")
    shutil.copytree(prompts, tmp_path / "shar")
    for name in ("train", "dev"):
        remove_field(tmp_path / "shar" / name, FIELD)
        assert not fields_dir(tmp_path / "shar" / name).exists()
    alone = build_setup(change(live, data=dict(shar_dir=str(tmp_path / "shar"))))
    assert re.search(rf"statistics of '{FIELD}' are those of \d+ frames", caplog.text)
    stored = build_setup(cached)
    heads = [s.student.heads["embedding"][FIELD] for s in (alone, stored)]
    for name in ("mean", "std"):  # the sample is as large as the set
        a, b = (getattr(head, name) for head in heads)
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_the_memory_probe_runs_the_teacher(live, caplog):
    caplog.set_level("INFO")
    train(change(live, memory_probe=True, num_epochs=1, data=dict(dev=None)))
    assert "memory probe: training on" in caplog.text


@pytest.mark.slow
def test_each_rank_runs_a_teacher(live, tmp_path):
    config = change(live, num_epochs=1, data=dict(max_duration=3.0))
    path = ranks.save_config(config, tmp_path / "config.yaml")
    with ranks.Job(ranks.run_command, (path,), tmp_path) as job:
        assert [job.end(rank) for rank in range(2)] == [0, 0], job.log(0)
    assert len(metrics(config)) > 1 and metrics(config, "dev")[0]["embedding"] > 0


def test_unusable_teachers_are_rejected_before_data_is_read(live, tmp_path):
    live = change(live, data=dict(shar_dir="/no/data"))
    assert_rejected(change(live, data=dict(teachers={})), rf"cache is none.*{FIELD}")
    unknown = {FIELD: {"family": "oracle", "model_dir": "x"}}
    assert_rejected(
        change(live, data=dict(teachers=unknown)),
        rf"teacher '{FIELD}': .*unknown .*'oracle'",
    )
    empty = {FIELD: {"model_dir": str(tmp_path / "nothing")}}
    assert_rejected(
        change(live, data=dict(teachers=empty)), "nothing/model.bin is missing", OSError
    )
    folder = live.data.teachers[FIELD]["model_dir"]
    other = {"tiny": {"family": FIELD, "model_dir": folder}}
    assert_rejected(
        change(live, data=dict(teachers=other)),
        rf"no teacher .*computes \['{FIELD}'\].*compute: \['tiny'\]",
    )
    assert_rejected(
        change(live, data=dict(expect={FIELD: {"layer": 3}})),
        f"'{FIELD}' differs from data.expect: layer is 'last', wanted 3",
    )
