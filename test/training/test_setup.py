"""Parts of a run: data, students and their initial weights."""

import dataclasses
import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from training_runs import assert_rejected, change

from icefall_kd.core.distributed import World
from icefall_kd.core.files import read_yaml
from icefall_kd.distill import TermsConfig
from icefall_kd.fields.format import info_path
from icefall_kd.recognition.recognise import load_recogniser
from icefall_kd.report.runs import find_run
from icefall_kd.training import loop
from icefall_kd.training.checkpoint import load_newest_checkpoint, write_average
from icefall_kd.training.run import train
from icefall_kd.training.setup import build_setup, make_train_loader
from icefall_kd.transducer.checkpoint import load_checkpoint, save_checkpoint


def test_an_unknown_field_error_lists_the_available_fields(config):
    config = change(
        config,
        terms={
            "embedding": dataclasses.replace(
                config.terms.embedding, teachers={"absent": 1.0}
            )
        },
    )
    assert_rejected(
        config, r"'absent' does not exist.*teacher_a.*teacher_b", FileNotFoundError
    )


def test_a_missing_set_error_lists_the_available_sets(config, data_dir, monkeypatch):
    config = change(config, data={"train": ("trian",)})
    assert_rejected(
        config, "train: no set 'trian'.*dev, train, unlabelled", FileNotFoundError
    )
    nowhere = change(config, data={"shar_dir": "data/nowhere"})
    message = r"data.train: no set 'trian' in data/nowhere.*no such folder in /"
    assert_rejected(nowhere, message, FileNotFoundError)
    monkeypatch.chdir(data_dir)  # a folder instead of its name
    config = change(config, data={"train": ("shar/train",)})
    message = "no set 'shar/train'.*data.shar_dir to shar and name the set 'train'"
    assert_rejected(config, message, FileNotFoundError)


def test_a_field_of_an_unexpected_teacher_is_rejected(config):
    config = change(config, data={"expect": {"teacher_a": {"teacher": "another"}}})
    assert_rejected(config, "teacher_a.*data.expect.*another")


def test_sets_of_different_teachers_are_rejected(config, data_dir, tmp_path):
    shar = tmp_path / "shar"
    shutil.copytree(data_dir / "shar", shar)
    path = info_path(shar / "unlabelled", "teacher_b")
    info = json.loads(path.read_text())
    info["fingerprint"]["teacher"] = "another"
    path.write_text(json.dumps(info))
    sets = ("train", "unlabelled")
    config = change(config, data={"shar_dir": str(shar), "train": sets})
    match = "field 'teacher_b': .*unlabelled.* different teachers: .*another"
    assert_rejected(config, match)


def test_no_term_and_unknown_losses_are_rejected(config):
    assert_rejected(dataclasses.replace(config, terms=TermsConfig()), "terms: no term")
    embedding = dataclasses.replace(config.terms.embedding, losses={"l3": 1.0})
    config = change(config, terms={"embedding": embedding})
    assert_rejected(config, "embedding.losses: .*l3.*cosine")


def test_a_resumed_run_keeps_its_previous_configurations(config, only, caplog):
    caplog.set_level(logging.INFO)
    config, rates = only("ctc", num_epochs=1), (0.045, 0.02, 0.01)
    steps, exp_dir = [], Path(config.exp_dir)
    for epochs, rate in enumerate(rates, 1):
        changed = dataclasses.replace(config, num_epochs=epochs)
        train(change(changed, optim={"base_lr": rate}))
        steps.append(load_newest_checkpoint(exp_dir)["state"]["step"])
    train(dataclasses.replace(changed, log_interval=7))  # finished: nothing changes
    kept = [f"config.{step}" for step in steps[:2]] + ["config"]
    found = [read_yaml(exp_dir / f"{name}.yaml")["optim"]["base_lr"] for name in kept]
    assert found == list(rates)
    assert len(list(exp_dir.glob("config*.yaml"))) == 3
    (stage,) = find_run(exp_dir / "decode/result.json", f"{exp_dir}/epoch-1.pt").stages
    assert stage.changes == tuple(
        f"changed after update {step}: optim.base_lr: {a} -> {b}, "
        f"num_epochs: {n} -> {n + 1}"
        for n, (step, a, b) in enumerate(zip(steps, rates, rates[1:]), 1)
    )
    assert stage.describe().endswith("; ".join(stage.changes))
    logs = sorted((exp_dir / "log").iterdir())
    assert len(logs) in (2, 3) and all(
        re.fullmatch(r"log-train-\d{4}(-\d\d){5}", log.name) for log in logs
    )
    text = "".join(log.read_text() for log in logs)
    assert "epoch 2 dev: loss=" in text and "configuration:" in text
    assert "changed option: optim.base_lr: 0.045 -> 0.02" in text


def test_the_log_of_a_run_ends_with_its_error(config, monkeypatch):
    monkeypatch.setattr(loop.Trainer, "_train_batch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(config)
    (log,) = (Path(config.exp_dir) / "log").iterdir()
    last = log.read_text().splitlines()[-1]
    assert last.endswith("ended by ZeroDivisionError: division by zero")


def test_fine_tuning_starts_from_all_parts_of_the_student(pretrained, new_run):
    encoder = dataclasses.replace(new_run.model.encoder, chunk_size=(32,), dropout=0.0)
    config = change(new_run, init_model=str(pretrained), model={"encoder": encoder})
    student = build_setup(config).student.model.state_dict()
    for name, value in load_checkpoint(pretrained)["model"].items():
        assert torch.equal(student[name], value), name
    with pytest.raises(ValueError, match="init_encoder and init_model"):
        dataclasses.replace(config, init_encoder=str(pretrained))


@pytest.fixture
def icefall_run(pretrained, new_run):
    """Return the weights of a transducer as icefall saves it, and a run from them."""
    weights = load_checkpoint(pretrained)["model"]
    weights = {k: v for k, v in weights.items() if not k.startswith("ctc_output.")}
    weights["attention_decoder.embed.weight"] = torch.zeros(2, 2)
    save_checkpoint(pretrained, {"model": weights})
    return weights, dataclasses.replace(new_run, init_model=str(pretrained))


def test_the_parts_in_a_file_of_icefall_are_loaded(icefall_run, caplog):
    weights, config = icefall_run
    path = config.init_model
    assert_rejected(
        config,
        r"init_model .*pretrained.pt has no BPE model.*data.bpe_model .*bpe.model; "
        r"set init_same_tokens: true",
    )
    config = dataclasses.replace(config, init_same_tokens=True)
    caplog.set_level("INFO")
    setup = build_setup(config)
    assert "random: ['ctc_output']" in caplog.text
    assert "ignored unknown parts ['attention_decoder']" in caplog.text
    student = setup.student.model.state_dict()
    for name, value in student.items():
        if not name.startswith("ctc_output."):
            assert torch.equal(weights[name], value), name
    assert setup.untrained == ("ctc_output",)
    wrong = change(config, model={"joiner_dim": 20})
    assert_rejected(wrong, "pretrained.pt has another shape: model.joiner_dim: 16 -> ")
    del weights["joiner.output_linear.bias"]
    save_checkpoint(path, {"model": weights})
    assert_rejected(config, "in 1 tensors: joiner.output_linear.bias: none in the file")
    save_checkpoint(path, {"model": {"layer.weight": torch.zeros(2)}})
    assert_rejected(config, "init_model .*pretrained.pt: not the weights of a")


def test_decoding_rejects_a_head_that_stayed_random(icefall_run, only, tmp_path):
    """A third run that starts from the second has the same random head."""
    config = only("transducer", init_same_tokens=True, num_epochs=1)
    path, exp_dir = icefall_run[1].init_model, str(tmp_path / "second")
    train(dataclasses.replace(config, init_model=path, exp_dir=exp_dir))
    averaged = tmp_path / "averaged.pt"
    write_average(tmp_path / "second", 1, 1, averaged)
    for file in (averaged, tmp_path / "second/epoch-1.pt"):
        load_recogniser(file, "transducer")
        with pytest.raises(ValueError, match="no term trained .*(ctc_output)"):
            load_recogniser(file, "ctc")
    third = only("transducer", init_model=str(averaged))
    assert build_setup(third).untrained == ("ctc_output",)
    assert build_setup(only("ctc", init_model=str(averaged))).untrained == (
        "ctc_output",
    )


def test_wrong_shares_and_names_in_mix_are_rejected(config):
    for share in (0.0, -0.2, 1.0):
        with pytest.raises(
            ValueError, match=r"mix is {'unlabelled'.*above 0 .* below 1"
        ):
            change(config, data={"mix": {"unlabelled": share}})
    with pytest.raises(ValueError, match=r"both name \['train'\]"):
        change(config, data={"mix": {"train": 0.5}})
    missing = change(config, data={"mix": {"absent": 0.2}})
    assert_rejected(
        missing, r"data.mix: no set 'absent'.*unlabelled", FileNotFoundError
    )


def test_heads_do_not_change_the_initial_weights_of_the_student(config, only):
    with_heads = build_setup(config).student.model.state_dict()
    without = build_setup(only("transducer")).student.model.state_dict()
    assert all(torch.equal(with_heads[k], v) for k, v in without.items())


def test_the_audio_in_an_epoch_is_that_of_its_cuts(config, data_dir):
    assert build_setup(config).train_seconds == pytest.approx(17.4, abs=0.01)


def test_unlabelled_cuts_are_left_out_if_every_term_needs_text(config, only, caplog):
    both = {"data": {"train": ("train", "unlabelled")}}
    assert build_setup(change(config, **both)).train_stream.counts() == (18, 18)
    caplog.set_level(logging.INFO)
    stream = build_setup(change(only("transducer", "ctc"), **both)).train_stream
    assert stream.counts() == (12, 18)
    assert "left out 6 of the first 18 cuts: they have no transcript" in caplog.text
    taken = list(stream)
    assert len(taken) == 12 and all(cut.supervisions for cut in taken)
    reader = stream.read(0)
    for _ in range(5):
        next(reader)
    assert [c.id for _, c in stream.read(0, reader.position())] == [
        c.id for c in taken[5:]
    ]
    assert all(key[0] == 0 for _, key in stream.longest(100))
    unlabelled_only = change(only("ctc"), data={"train": ("unlabelled",)})
    assert_rejected(
        unlabelled_only, r"\['unlabelled'\]: none of 6 cuts has a transcript"
    )


def test_num_workers_of_minus_one_uses_all_cpus_but_one(config, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for asked, workers in ((-1, 2), (0, 0), (1, 1)):
        setup = build_setup(change(config, data={"num_workers": asked}))
        world = World(0, 1, torch.device("cpu"))
        assert make_train_loader(setup, world).num_workers == workers
