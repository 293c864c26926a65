"""What is wrong with a run is told before the first batch, in one message."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from icefall_kd.data.tokens import train_bpe, write_lang
from icefall_kd.distill.terms import TermsConfig
from icefall_kd.training.averaging import write_average
from icefall_kd.training.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from icefall_kd.training.distributed import World
from icefall_kd.training.loaders import make_train_loader
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


def write_other_lang(folder):
    """Write as many tokens as the config's, but others."""
    texts = ["ALL OTHER WORDS ARE HERE", "THAT WE SET TO WEAR A SHOE"] * 9
    write_lang(train_bpe(texts, 24), folder)


@pytest.fixture
def pretrained(config, tmp_path):
    """A trained student's file, and a config that is to start from it."""
    config = dataclasses.replace(config, num_epochs=1)
    train(config)
    path = tmp_path / "pretrained.pt"
    write_average(config.exp_dir, 1, 1, path)
    return path, dataclasses.replace(config, exp_dir=str(tmp_path / "other"))


def test_an_encoder_of_another_shape_is_refused_by_option_and_by_tensor(pretrained):
    path, config = pretrained
    config = dataclasses.replace(config, init_encoder=str(path))
    encoder = dataclasses.replace(config.model.encoder, feedforward_dim=(16, 28))
    other = change(config, model={"encoder": encoder})
    assert_refused(
        other,
        r"init_encoder .*pretrained.pt is of another shape: "
        r"model.encoder.feedforward_dim: \[16, 24\] -> \[16, 28\] .*shape of that",
    )
    saved = load_checkpoint(path)
    del saved["model_config"]  # as a checkpoint of another project
    save_checkpoint(path, saved)
    assert_refused(
        other,
        r"its encoder is not this model's.*encoder.*there.*here.*model.encoder",
    )
    missing = dataclasses.replace(config, init_encoder="no.pt")
    assert_refused(missing, "no.pt: no such checkpoint", FileNotFoundError)


def test_all_that_keeps_fine_tuning_from_starting_is_told_at_once(pretrained, tmp_path):
    """Before data is read: there is none in the folder that is named."""
    path, config = pretrained
    write_other_lang(tmp_path / "lang")
    tokens = tmp_path / "lang/tokens.txt"
    tokens.write_text(tokens.read_text().replace("<unk> 2", "<oov> 2"))
    encoder = dataclasses.replace(
        config.model.encoder, causal=False, chunk_size=(-1,), encoder_dim=(16, 28)
    )
    wrong = change(
        dataclasses.replace(config, init_model=str(path)),
        model={"encoder": encoder, "joiner_dim": 20, "vocab_size": 25},
        data={
            "bpe_model": str(tmp_path / "lang/bpe.model"),
            "shar_dir": str(tmp_path / "nothing"),
        },
    )
    with pytest.raises(ValueError) as e:
        train(wrong)
    said = str(e.value)
    assert said.startswith("4 things do not fit together:\n  1. ")
    for part in (
        "bpe.model has 24 tokens, but model.vocab_size is 25",
        "tokens.txt is not of the bpe.model beside it: 2: <oov> -> <unk> (",
        "model.encoder.causal: True -> False",
        "model.encoder.encoder_dim: [16, 24] -> [16, 28]",
        "model.joiner_dim: 16 -> 20",
        "model.vocab_size: 24 -> 25",
        "has other tokens than",
    ):
        assert part in said, part
    assert "chunk_size" not in said  # no weight depends on it
    assert not Path(wrong.exp_dir).exists()


def test_other_tokens_are_refused_when_a_run_goes_on(config, tmp_path):
    config = dataclasses.replace(config, num_epochs=1)
    train(config)
    write_other_lang(tmp_path / "lang")
    other = change(config, data={"bpe_model": str(tmp_path / "lang/bpe.model")})
    assert_refused(
        dataclasses.replace(other, num_epochs=2),
        r"exp has other tokens than .*lang/bpe.model: 3: .* -> .*; \d+ more \(there",
    )


def test_fine_tuning_starts_from_the_whole_student(pretrained, config):
    path, other = pretrained
    encoder = dataclasses.replace(other.model.encoder, chunk_size=(32,), dropout=0.0)
    other = change(
        dataclasses.replace(other, init_model=str(path)), model={"encoder": encoder}
    )
    student = prepare(other).student.model.state_dict()
    for name, value in load_checkpoint(path)["model"].items():
        assert torch.equal(student[name], value), name
    with pytest.raises(ValueError, match="both set"):
        dataclasses.replace(other, init_encoder=str(path))


def test_a_mixed_in_set_is_refused_where_its_share_or_name_is_wrong(config):
    for share in (0.0, -0.2, 1.0):
        with pytest.raises(ValueError, match=r"mix is {'pool'.*above 0 .* below 1"):
            change(config, data={"mix": {"pool": share}})
    with pytest.raises(ValueError, match=r"both name \['train'\]"):
        change(config, data={"mix": {"train": 0.5}})
    missing = change(config, data={"mix": {"old": 0.2}})
    assert_refused(missing, r"no set 'old'.*pool", FileNotFoundError)


def test_heads_do_not_disturb_the_students_first_weights(config, only):
    with_heads = prepare(config).student.model.state_dict()
    without = prepare(only("transducer")).student.model.state_dict()
    assert all(torch.equal(with_heads[k], v) for k, v in without.items())


def test_the_length_of_an_epoch_is_that_of_its_cuts(config, data_dir):
    assert prepare(config).train_seconds == pytest.approx(17.4, abs=0.01)


def test_cuts_without_transcript_are_left_out_where_every_term_needs_one(
    config, only, caplog
):
    both = {"data": {"train": ("train", "pool")}}
    assert prepare(change(config, **both)).train_stream.counts() == (18, 18)
    caplog.set_level(logging.INFO)
    stream = prepare(change(only("transducer", "ctc"), **both)).train_stream
    assert stream.counts() == (12, 18)
    assert "6 of the first 18 cuts have no transcript and are left out" in caplog.text
    taken = [cut for _, cut in stream.read(0)]
    assert len(taken) == 12 and all(cut.supervisions for cut in taken)
    reader = stream.read(0)
    for _ in range(5):
        next(reader)
    assert [c.id for _, c in stream.read(0, reader.place())] == [
        c.id for c in taken[5:]
    ]
    assert all(key[0] == 0 for _, key in stream.longest(100))
    pool_only = change(only("ctc"), data={"train": ("pool",)})
    assert_refused(pool_only, r"none of 6 cuts of \['pool'\] has a transcript")


def test_workers_are_by_the_cpus_of_the_machine_where_asked(config, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for asked, workers in ((-1, 2), (0, 0), (1, 1)):
        setup = prepare(change(config, data={"num_workers": asked}))
        world = World(0, 1, torch.device("cpu"))
        assert make_train_loader(setup, world).num_workers == workers
