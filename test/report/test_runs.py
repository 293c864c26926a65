"""What training left beside the results."""

import json

import pytest
from reported import decoded, train_set, trained

from icefall_kd.core.config import ModelConfig
from icefall_kd.report.runs import Run, budget_differences, find_run
from icefall_kd.training.metrics import read_metrics
from icefall_kd.transducer.checkpoint import save_pretrained

RESULT = "decode/result-test-greedy_search.json"


def run_of(folder):
    path = folder / RESULT
    facts = json.loads(path.read_text())
    return find_run(path, facts["checkpoint"], facts.get("training"))


def test_the_stages_of_a_checkpoint_are_followed_to_the_first(exp):
    pretrain, finetune = run_of(exp / "kd").stages
    assert (pretrain.name, finetune.name) == ("pretrain", "finetune")
    assert run_of(exp / "kd").finetuning == finetune
    assert pretrain.sets == ("train", "pool")
    assert finetune.describe() == (
        "3 epochs, 300 updates of at most 200 s on train; counts of the whole run, its "
        "checkpoint's are not known"
    )
    assert finetune.points("dev", "loss") == [(100, 1.25), (200, 0.75), (300, 0.5)]
    assert finetune.points("train", "loss")[0] == (100, 2.5)
    assert [s.name for s in run_of(exp / "baseline").stages] == ["finetune"]


def test_updates_are_those_of_the_checkpoint_and_not_of_its_run(exp, tmp_path):
    folder = tmp_path / "more"
    for name in ("pretrain", "finetune"):
        init = name == "finetune" and str(folder / "pretrain/pretrained.pt")
        trained(folder / name, [1.0] * 5, init_encoder=init or None)
    averaged = {"epoch": 2, "avg": 1, "step": 200}
    save_pretrained(folder / "pretrain/pretrained.pt", {}, ModelConfig(), b"", averaged)
    decoded(folder / "decode", 1, training={"epoch": 3, "avg": 2, "step": 300})
    pretrain, finetune = run_of(folder).stages
    assert (finetune.epochs, finetune.updates) == (3, 300)
    assert finetune.describe().startswith("3 of 5 epochs, 300 updates of at most 200 s")
    assert finetune.describe().endswith("; weights averaged over the last 2 epochs")
    assert (pretrain.epochs, pretrain.updates) == (2, 200)
    assert budget_differences(run_of(folder), run_of(exp / "baseline"))[1:] == []


def test_a_moved_experiment_keeps_its_training(exp, tmp_path):
    exp.rename(tmp_path / "moved")
    stages = run_of(tmp_path / "moved/kd").stages
    assert [s.name for s in stages] == ["pretrain", "finetune"]


def test_a_run_above_its_results_is_found_and_its_neighbours_are_not(tmp_path):
    trained(tmp_path / "a", [1.0])
    trained(tmp_path / "b", [1.0])
    decoded(tmp_path / "a/decode", 1, checkpoint=str(tmp_path / "a/pretrained.pt"))
    assert [s.name for s in run_of(tmp_path / "a").stages] == ["a"]
    decoded(tmp_path / "c/decode", 1, checkpoint=str(tmp_path / "c/pretrained.pt"))
    assert run_of(tmp_path / "c") == Run()


def test_a_checkpoint_that_started_from_another_run_of_the_name_tells_both(tmp_path):
    origin = tmp_path / "stage1/finetune"
    trained(origin, [2.0])
    decoded(tmp_path / "stage2/decode", 1)
    trained(
        tmp_path / "stage2/finetune", [1.0], init_model=str(origin / "pretrained.pt")
    )
    assert [s.name for s in run_of(tmp_path / "stage2").stages] == [
        "stage1/finetune",
        "finetune",
    ]


def test_a_line_cut_short_by_a_kill_is_left_out_and_another_is_named(exp):
    path = exp / "kd/finetune/metrics.jsonl"
    whole = read_metrics(path)
    path.write_text(path.read_text() + '{"kind": "tra')
    assert read_metrics(path) == whole
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "?", *lines[1:]]))
    with pytest.raises(ValueError, match="metrics.jsonl:2"):
        read_metrics(path)


def test_values_that_are_not_finite_are_no_points(tmp_path):
    trained(tmp_path / "finetune", [1.0, float("nan"), 0.5])
    decoded(tmp_path / "decode", 1)
    (stage,) = run_of(tmp_path).stages
    assert stage.points("dev", "loss") == [(100, 1.0), (300, 0.5)]


def test_another_budget_is_told_and_the_same_is_not(exp, tmp_path):
    kd, baseline = run_of(exp / "kd"), run_of(exp / "baseline")
    assert budget_differences(kd, baseline) == []
    other = tmp_path / "long"
    trained(other / "finetune", [1.0] * 4, data=train_set("train", "more"))
    decoded(other / "decode", 1)
    assert budget_differences(run_of(other), baseline) == [
        "sets train, more against train",
        "4 epochs against 3",
        "400 updates against 300",
    ]
    assert budget_differences(Run(), Run()) == []
    assert "not known" in budget_differences(Run(), baseline)[0]


def test_training_that_has_not_ended_says_so(tmp_path):
    trained(tmp_path / "finetune", [1.0, 0.9], epochs=12)
    decoded(tmp_path / "decode", 1)
    assert run_of(tmp_path).stages[0].describe().startswith("2 of 12 epochs, 200")
