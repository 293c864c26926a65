"""A trained student teaches a streaming student that starts from its weights."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from run_metrics import metrics
from training_runs import change

from icefall_kd.core.distributed import World
from icefall_kd.distill import TermsConfig
from icefall_kd.distill.hidden import HiddenConfig
from icefall_kd.distill.inter_ctc import InterCtcConfig
from icefall_kd.distill.lfmmi import LfmmiConfig
from icefall_kd.fields.extract import extract
from icefall_kd.teachers import build_teacher
from icefall_kd.training.checkpoint import write_average
from icefall_kd.training.run import train
from icefall_kd.training.setup import build_setup, make_dev_loader
from icefall_kd.transducer.bigram import make_bigram_table, save_bigram
from icefall_kd.transducer.checkpoint import load_checkpoint


@pytest.fixture
def second(only, config, data_dir, tmp_path):
    """Return the configuration of a second stage that starts from a student."""
    first = only("ctc", exp_dir=str(tmp_path / "first"), num_epochs=1)
    train(first)
    path = tmp_path / "student.pt"
    write_average(tmp_path / "first", 0, 1, path)
    shar = Path(shutil.copytree(data_dir / "shar", tmp_path / "shar"))
    options = {"outputs": ["embedding", "ctc"], "layers": [0, 1], "topk": 4}
    teacher = build_teacher("zipformer", path, "student", **options)
    for name in ("train", "dev", "unlabelled"):
        extract(shar / name, [teacher])
    bigram = tmp_path / "bigram.pt"
    table = make_bigram_table([[1, 2, 3]], config.model.vocab_size)
    save_bigram(table, "", bigram)
    stacks = {0: "student_layer0", 1: "student_layer1"}
    encoder = dataclasses.replace(config.model.encoder, chunk_size=(16,))
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, encoder=encoder),
        data=dataclasses.replace(config.data, shar_dir=str(shar)),
        terms=TermsConfig(
            ctc=config.terms.ctc,
            hidden=HiddenConfig(stacks=stacks),
            lfmmi=LfmmiConfig(teacher="student_ctc", bigram=str(bigram)),
        ),
        init_model=str(path),
    )


@torch.no_grad()
def dev_loss(config):
    """Return the hidden term per frame before the first update, in full context."""
    setup = build_setup(config)
    student = setup.student.eval()
    student.model.encoder.set_chunk(-1, -1)
    total, frames = 0.0, 0
    for batch in make_dev_loader(setup, World(0, 1, torch.device("cpu"))):
        output = student(batch, 0)[2]["hidden"]
        total, frames = total + float(output.sum), frames + output.count
    return total / frames


def test_the_second_stage_starts_from_its_teacher_and_resumes_exactly(second, tmp_path):
    at_random = dataclasses.replace(second, init_model=None)
    assert dev_loss(second) < 0.1 * dev_loss(at_random)
    train(dataclasses.replace(second, num_epochs=1))
    at_once = dataclasses.replace(second, exp_dir=str(tmp_path / "at_once"))
    train(second)  # resumes
    train(at_once)
    expected = load_checkpoint(tmp_path / "at_once/epoch-2.pt")["model"]
    found = load_checkpoint(tmp_path / "exp/epoch-2.pt")["model"]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    for line in metrics(second):
        assert line["hidden.stack0_l2"] > 0.0 and line["lfmmi"] > -1e-2


def test_unlabelled_audio_trains_heads_with_a_teacher(second):
    terms = TermsConfig(inter_ctc=InterCtcConfig(stacks=(0,), teacher="student_ctc"))
    data = dict(train=("unlabelled",), dev=None)
    config = change(second, terms=terms, num_epochs=1, data=data)
    train(config)
    for line in metrics(config):
        assert line["inter_ctc.final_kd"] > 0 and "inter_ctc.final_ctc" not in line
    no_teacher = dataclasses.replace(terms.inter_ctc, teacher=None)
    config = dataclasses.replace(config, terms=TermsConfig(inter_ctc=no_teacher))
    with pytest.raises(ValueError, match="none of . cuts has a transcript"):
        build_setup(config)
