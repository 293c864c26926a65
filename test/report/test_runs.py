"""Find the training of a system in the files of its runs."""

import json

import pytest
from report_files import make_data_config, write_result, write_training

from icefall_kd.core.config import ModelConfig
from icefall_kd.report.runs import Run, compare_budgets, find_run
from icefall_kd.training.metrics import read_metrics
from icefall_kd.transducer.checkpoint import save_pretrained

RESULT = "decode/result-test-greedy_search.json"


def run_of(folder):
    path = folder / RESULT
    facts = json.loads(path.read_text())
    return find_run(path, facts["checkpoint"], facts.get("training"))


def test_all_stages_of_a_checkpoint_are_found(exp):
    pretrain, finetune = run_of(exp / "kd").stages
    assert (pretrain.name, finetune.name) == ("pretrain", "finetune")
    assert run_of(exp / "kd").last_stage == finetune
    assert pretrain.sets == ("train", "unlabelled")
    assert finetune.describe() == (
        "3 epochs, 300 updates of at most 200 s on train; counts of the complete run, "
        "those of the checkpoint are unknown"
    )
    assert finetune.points("dev", "loss") == [(100, 1.25), (200, 0.75), (300, 0.5)]
    assert finetune.points("train", "loss")[0] == (100, 2.5)
    assert [s.name for s in run_of(exp / "baseline").stages] == ["finetune"]


def test_epochs_and_updates_are_counted_up_to_the_checkpoint(exp, tmp_path):
    folder = tmp_path / "more"
    for name in ("pretrain", "finetune"):
        init = name == "finetune" and str(folder / "pretrain/pretrained.pt")
        write_training(folder / name, [1.0] * 5, init_encoder=init or None)
    averaged = {"epoch": 2, "avg": 1, "step": 200}
    save_pretrained(folder / "pretrain/pretrained.pt", {}, ModelConfig(), b"", averaged)
    write_result(folder / "decode", 1, training={"epoch": 3, "avg": 2, "step": 300})
    pretrain, finetune = run_of(folder).stages
    assert (finetune.epochs, finetune.updates) == (3, 300)
    assert finetune.describe().startswith("3 of 5 epochs, 300 updates of at most 200 s")
    assert finetune.describe().endswith("; weights averaged over the last 2 epochs")
    assert (pretrain.epochs, pretrain.updates) == (2, 200)
    assert compare_budgets(run_of(folder), run_of(exp / "baseline"))[1:] == []


def test_the_training_of_a_moved_experiment_is_found(exp, tmp_path):
    exp.rename(tmp_path / "moved")
    stages = run_of(tmp_path / "moved/kd").stages
    assert [s.name for s in stages] == ["pretrain", "finetune"]


def test_a_run_in_the_parent_folder_of_its_results_is_found(tmp_path):
    write_training(tmp_path / "a", [1.0])
    write_training(tmp_path / "b", [1.0])
    write_result(tmp_path / "a/decode", 1, checkpoint=str(tmp_path / "a/pretrained.pt"))
    assert [s.name for s in run_of(tmp_path / "a").stages] == ["a"]
    write_result(tmp_path / "c/decode", 1, checkpoint=str(tmp_path / "c/pretrained.pt"))
    assert run_of(tmp_path / "c") == Run()


def test_two_stages_of_one_name_are_named_by_their_system(tmp_path):
    origin = tmp_path / "stage1/finetune"
    write_training(origin, [2.0])
    write_result(tmp_path / "stage2/decode", 1)
    write_training(
        tmp_path / "stage2/finetune", [1.0], init_model=str(origin / "pretrained.pt")
    )
    assert [s.name for s in run_of(tmp_path / "stage2").stages] == [
        "stage1/finetune",
        "finetune",
    ]


def test_an_incomplete_last_line_of_the_metrics_is_skipped(exp):
    path = exp / "kd/finetune/metrics.jsonl"
    lines = read_metrics(path)
    path.write_text(path.read_text() + '{"kind": "tra')
    assert read_metrics(path) == lines
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "?", *lines[1:]]))
    with pytest.raises(ValueError, match="metrics.jsonl:2"):
        read_metrics(path)


def test_values_that_are_not_finite_are_skipped(tmp_path):
    write_training(tmp_path / "finetune", [1.0, float("nan"), 0.5])
    write_result(tmp_path / "decode", 1)
    (stage,) = run_of(tmp_path).stages
    assert stage.points("dev", "loss") == [(100, 1.0), (300, 0.5)]


def test_different_budgets_are_described(exp, tmp_path):
    kd, baseline = run_of(exp / "kd"), run_of(exp / "baseline")
    assert compare_budgets(kd, baseline) == []
    other = tmp_path / "long"
    write_training(
        other / "finetune", [1.0] * 4, data=make_data_config("train", "more")
    )
    write_result(other / "decode", 1)
    assert compare_budgets(run_of(other), baseline) == [
        "sets train, more against train",
        "4 epochs against 3",
        "400 updates against 300",
    ]
    assert compare_budgets(Run(), Run()) == []
    assert "unknown" in compare_budgets(Run(), baseline)[0]


def test_an_unfinished_training_has_its_planned_epochs(tmp_path):
    write_training(tmp_path / "finetune", [1.0, 0.9], epochs=12)
    write_result(tmp_path / "decode", 1)
    assert run_of(tmp_path).stages[0].describe().startswith("2 of 12 epochs, 200")
