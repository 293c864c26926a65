"""Teachers that are drawn at random, or averaged, in a run."""

import dataclasses

import pytest
import torch
from run_metrics import metrics

from icefall_kd.distill import TermsConfig
from icefall_kd.training.run import train
from icefall_kd.transducer.checkpoint import load_checkpoint


def with_embedding(config, **options):
    embedding = dataclasses.replace(config.terms.embedding, **options)
    return dataclasses.replace(config, terms=TermsConfig(embedding=embedding))


def test_a_run_that_goes_on_draws_the_teachers_that_it_would_have(config, tmp_path):
    config = with_embedding(config, choose="random")
    train(dataclasses.replace(config, num_epochs=1))
    train(config)
    at_once = dataclasses.replace(config, exp_dir=str(tmp_path / "at_once"))
    train(at_once)
    lines, expected = metrics(config), metrics(at_once)
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, other in zip(lines, expected):
        assert line["embedding"] == pytest.approx(other["embedding"], rel=1e-5)
    first, second = ("exp/epoch-2.pt", "at_once/epoch-2.pt")
    found = load_checkpoint(tmp_path / first)["model"]
    for name, value in load_checkpoint(tmp_path / second)["model"].items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_teachers_of_two_sizes_are_refused_before_data_is_read(config):
    with pytest.raises(ValueError, match="'average'.*different sizes"):
        train(with_embedding(config, choose="average"))
