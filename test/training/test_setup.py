"""What is wrong with a run is told before the first batch, in one message."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from icefall_kd.data.tokens import train_bpe, write_lang
from icefall_kd.distill.terms import TermsConfig
from icefall_kd.training.averaging import write_average
from icefall_kd.training.checkpoint import newest_checkpoint
from icefall_kd.training.run import train
from icefall_kd.training.setup import prepare


def change(config, **parts):
    """Replace fields of the config's parts: ``change(config, data={...})``."""
    for name, values in parts.items():
        part = dataclasses.replace(getattr(config, name), **values)
        config = dataclasses.replace(config, **{name: part})
    return config


def files(folder):
    return {p: p.stat().st_mtime_ns for p in Path(folder).rglob("*")}


def assert_refused(config, match, error=ValueError):
    """The run ends with this message and leaves what was there as it was."""
    before = files(config.exp_dir)
    with pytest.raises(error, match=match):
        train(config)
    assert files(config.exp_dir) == before


def test_a_bpe_model_of_another_size_is_refused(config, tmp_path):
    write_lang(train_bpe(["ONE TWO THREE"] * 9, 13), tmp_path)
    config = change(config, data={"bpe_model": str(tmp_path / "bpe.model")})
    assert_refused(config, r"bpe.model has 13 tokens.*vocab_size is 24.*to 0")
    config = change(config, model={"vocab_size": 0})
    assert prepare(config).config.model.vocab_size == 13


def test_a_missing_bpe_model_is_named(config, tmp_path):
    missing = change(config, data={"bpe_model": str(tmp_path / "no.model")})
    assert_refused(missing, "no.model", FileNotFoundError)
    assert_refused(change(config, data={"bpe_model": None}), "bpe_model is not set")


def test_an_unknown_field_is_refused_with_those_that_exist(config):
    config = change(
        config,
        terms={
            "embedding": dataclasses.replace(
                config.terms.embedding, teachers={"nobody": 1.0}
            )
        },
    )
    assert_refused(config, r"'nobody' does not exist.*old.*wise", FileNotFoundError)


def test_a_missing_set_is_refused_with_those_that_exist(config):
    config = change(config, data={"train": ("trian",)})
    assert_refused(config, r"no set 'trian'.*dev.*pool.*train", FileNotFoundError)


def test_a_field_of_another_teacher_than_expected_is_refused(config):
    config = change(config, data={"expect": {"wise": {"teacher": "wiser"}}})
    assert_refused(config, "wise.*not what the configuration expects.*wiser")


def test_sets_of_different_teachers_are_refused(config, data_dir, tmp_path):
    shar = tmp_path / "shar"
    shutil.copytree(data_dir / "shar", shar)
    path = shar / "pool/old.json"
    info = json.loads(path.read_text())
    info["fingerprint"]["teacher"] = "older"
    path.write_text(json.dumps(info))
    config = change(config, data={"shar_dir": str(shar), "train": ("train", "pool")})
    assert_refused(config, "'old' of .*pool is not from the teacher.*older")


def test_no_term_and_unknown_losses_are_refused(config):
    assert_refused(dataclasses.replace(config, terms=TermsConfig()), "no term is on")
    embedding = dataclasses.replace(config.terms.embedding, losses={"l3": 1.0})
    config = change(config, terms={"embedding": embedding})
    assert_refused(config, r"unknown \['l3'\].*cosine")


def test_a_checkpoint_of_another_configuration_is_refused(config):
    config = dataclasses.replace(config, num_epochs=1)
    train(config)
    longer = dataclasses.replace(config, num_epochs=2)
    assert_refused(
        change(longer, model={"joiner_dim": 20}),
        r"another configuration: model.joiner_dim: 16 -> 20.*another exp_dir",
    )
    assert_refused(
        change(longer, terms={"ctc": None}), r"terms: \['ctc', .*\] -> \['embedding'"
    )
    train(change(longer, optim={"base_lr": 0.01}))  # a new rate is allowed
    assert newest_checkpoint(config.exp_dir)["state"]["epoch"] == 2


def test_an_encoder_of_another_shape_is_refused_by_tensor(config, tmp_path):
    config = dataclasses.replace(config, num_epochs=1)
    train(config)
    path = tmp_path / "pretrained.pt"
    write_average(config.exp_dir, 1, 1, path)
    other = dataclasses.replace(
        config, init_encoder=str(path), exp_dir=str(tmp_path / "other")
    )
    encoder = dataclasses.replace(other.model.encoder, feedforward_dim=(16, 28))
    assert_refused(
        change(other, model={"encoder": encoder}),
        r"its encoder is not this model's.*encoder.*there.*here.*model.encoder",
    )
    missing = dataclasses.replace(other, init_encoder=str(tmp_path / "no.pt"))
    assert_refused(missing, "no.pt: no such checkpoint", FileNotFoundError)


def test_heads_do_not_disturb_the_students_first_weights(config, only):
    with_heads = prepare(config).student.model.state_dict()
    without = prepare(only("transducer")).student.model.state_dict()
    assert all(torch.equal(with_heads[k], v) for k, v in without.items())


def test_the_length_of_an_epoch_is_that_of_its_cuts(config, data_dir):
    assert prepare(config).train_seconds == pytest.approx(17.4, abs=0.01)
