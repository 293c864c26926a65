"""Losses and word error rate on the dev set."""

import dataclasses
from pathlib import Path

import pytest
import students
import torch
from lhotse import CutSet
from run_metrics import metrics
from torch import nn
from training_runs import change

from icefall_kd.core.distributed import World
from icefall_kd.dataset.dataset import load_batch
from icefall_kd.dataset.stream import open_stream
from icefall_kd.distill import TermsConfig
from icefall_kd.distill.one_best import OneBestConfig, OneBestTerm
from icefall_kd.distill.transducer import (
    CtcConfig,
    CtcTerm,
    TransducerConfig,
    TransducerTerm,
)
from icefall_kd.training.checkpoint import write_average
from icefall_kd.training.interruptions import StopRequest
from icefall_kd.training.run import train
from icefall_kd.training.student import DistilledStudent
from icefall_kd.training.validation import decoding_head, validate

CTC = (0.5, CtcTerm(CtcConfig()))
TRANSDUCER = (1.0, TransducerTerm(TransducerConfig()))
ONE_BEST = (1.0, OneBestTerm(OneBestConfig(teacher="path")))


def test_a_trained_ctc_head_decodes_dev():
    for terms, head in (
        ([CTC, TRANSDUCER], "ctc"),
        ([TRANSDUCER], "transducer"),
        ([ONE_BEST], "transducer"),
        ([], None),
    ):
        assert decoding_head([term for _, term in terms]) == head


@pytest.mark.parametrize("head, term", [("ctc", CTC), ("transducer", TRANSDUCER)])
def test_the_dev_wer_is_that_of_greedy_search(
    student, cuts, tokenizer, tmp_path, head, term
):
    """Transcripts are the student's hypotheses, except two words of one prompt."""
    method = {"ctc": "ctc_greedy_search", "transducer": "greedy_search"}[head]
    some = [c for c in cuts if 1.0 < c.duration < 2.5][:5]
    students.write_own_words(tmp_path / "own", some, student, tokenizer, method)
    texts = [c.supervisions[0].text for c in open_stream([tmp_path / "own"])]

    def dev(batch):
        return validate(
            DistilledStudent(student, [term], nn.ModuleDict()),
            [batch],
            World(0, 1, torch.device("cpu")),
            StopRequest(),
            tokenizer=tokenizer,
            autocast=lambda: torch.autocast("cpu", enabled=False),
            max_duration=100.0,
        )

    student.encoder.set_chunk(-1, -1)
    for altered in (0, 2):
        words = texts[0].split()
        assert len(words) > 2
        for i in range(altered):
            words[i] = "QWERTY"
        found = []
        for cut in open_stream([tmp_path / "own"]):  # one by one, as they were decoded
            if cut.supervisions[0].text == texts[0]:
                cut.supervisions[0].text = " ".join(words)
            batch = load_batch(CutSet.from_cuts([cut]), tokenizer=tokenizer)
            found.append((dev(batch), cut))
        errors = [
            round(means[f"wer_{head}"] * len(cut.supervisions[0].text.split()) / 100)
            for means, cut in found
        ]
        assert errors == [altered, 0, 0, 0, 0]


def test_a_term_that_uses_no_dev_cut_has_no_dev_loss(only, caplog):
    config = only("ctc", num_epochs=1)
    train(change(config, data=dict(dev="unlabelled")))
    (line,) = metrics(config, "dev")
    assert "loss" not in line and "ctc" not in line and "wer_ctc" not in line
    assert "dev: term 'ctc' used no cut, by reason: {'unlabelled': 6}" in caplog.text


def test_dev_losses_use_the_weights_after_the_warm_up(only, tmp_path):
    """The student's weights are constant, so its dev loss must be constant too."""
    warm = TransducerConfig(warm_steps=1000, simple_scale=0.3)
    config = only("transducer", average_period=1)
    terms = TermsConfig(transducer=warm)
    config = change(config, terms=terms, optim=dict(base_lr=0.0))
    train(config)
    first, second = metrics(config, "dev")
    parts = first["transducer.simple"], first["transducer.pruned"]
    assert first["loss"] == pytest.approx(0.3 * parts[0] + parts[1], rel=1e-5)
    assert second["loss"] == first["loss"]
    assert first["wer_transducer"] > 0
    path = tmp_path / "pretrained.pt"
    write_average(config.exp_dir, 2, 1, path)
    tuned = dataclasses.replace(
        config, init_model=str(path), exp_dir=str(tmp_path / "tuned"), tensorboard=True
    )
    train(dataclasses.replace(tuned, num_epochs=1))
    (line,) = metrics(tuned, "dev")
    assert line["loss"] == pytest.approx(first["loss"], rel=1e-5)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(tuned.exp_dir) / "tensorboard")).Reload()
    (scalar,) = events.Scalars("dev/wer_transducer")
    assert scalar.value == pytest.approx(line["wer_transducer"])
