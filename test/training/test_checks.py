"""Mismatches of configuration, tokens and checkpoints, in one error."""

import dataclasses
from pathlib import Path

import pytest
from training_runs import assert_rejected, change

from icefall_kd.data.tokens import train_bpe, write_lang
from icefall_kd.distill import TERMS, TermsConfig
from icefall_kd.distill.essence import EssenceConfig
from icefall_kd.distill.hidden import HiddenConfig
from icefall_kd.distill.inter_ctc import InterCtcConfig
from icefall_kd.distill.lfmmi import LfmmiConfig
from icefall_kd.distill.one_best import OneBestConfig
from icefall_kd.training.checkpoint import load_newest_checkpoint
from icefall_kd.training.run import train
from icefall_kd.training.setup import build_setup
from icefall_kd.transducer.bigram import make_bigram_table, save_bigram
from icefall_kd.transducer.checkpoint import load_checkpoint, save_checkpoint


def test_a_bpe_model_of_another_size_is_rejected(config, tmp_path):
    write_lang(train_bpe(["ONE TWO THREE"] * 9, 13), tmp_path)  # lacks other letters
    config = change(config, data={"bpe_model": str(tmp_path / "bpe.model")})
    assert_rejected(config, r"bpe.model has 13 tokens.*vocab_size is 24.*to 0")
    config = change(config, model={"vocab_size": 0})
    assert_rejected(config, "of 87 tokens .* are <unk>.*I .U.0049. 8.*data.max_unknown")
    config = change(config, data={"max_unknown": 0.5})
    assert build_setup(config).config.model.vocab_size == 13


def test_a_missing_bpe_model_is_named(config, tmp_path):
    missing = change(config, data={"bpe_model": str(tmp_path / "no.model")})
    assert_rejected(missing, "no.model", FileNotFoundError)
    assert_rejected(change(config, data={"bpe_model": None}), "bpe_model is not set")


@pytest.fixture
def delayed_terms(config, tmp_path):
    """Return each term whose targets are frames, with a delay of 2 frames."""
    bigram = tmp_path / "bigram.pt"
    save_bigram(make_bigram_table([[1, 2], [3]], 24), "", bigram)
    return {
        "embedding": dataclasses.replace(config.terms.embedding, delay=2),
        "hidden": HiddenConfig(stacks={0: "teacher_a"}, delay=2),
        "one_best": OneBestConfig(teacher="big_path", shift=2),
        "essence": EssenceConfig(teachers=("big_ctc",), delay=2),
        "inter_ctc": InterCtcConfig(teacher="big_ctc", delay=2),
        "lfmmi": LfmmiConfig(teacher="big_ctc", bigram=str(bigram), delay=2),
    }


def test_time_warp_is_rejected_for_terms_whose_targets_are_frames(
    config, only, delayed_terms
):
    assert all(TERMS[name].frame_targets for name in delayed_terms)
    warped = {"data": {"time_warp_factor": 80}}
    for name, options in delayed_terms.items():
        one = dataclasses.replace(config, terms=TermsConfig(**{name: options}))
        with pytest.raises(ValueError, match=rf"factor is 80.*terms.{name} are.*to 0"):
            train(change(one, **warped))
    without_teacher = TermsConfig(inter_ctc=InterCtcConfig(), ctc=config.terms.ctc)
    build_setup(change(dataclasses.replace(config, terms=without_teacher), **warped))
    build_setup(change(only("transducer", "ctc"), **warped))  # baselines may warp


def test_a_delay_without_chunks_is_rejected(config, delayed_terms):
    encoder = dataclasses.replace(
        config.model.encoder, causal=False, chunk_size=(-1,), left_context_frames=(-1,)
    )
    config = change(config, model={"encoder": encoder})
    for name, options in delayed_terms.items():
        one = dataclasses.replace(config, terms=TermsConfig(**{name: options}))
        match = rf"terms.{name} has a delay.* 2 frames.*full context"
        with pytest.raises(ValueError, match=match):
            train(one)


def test_a_checkpoint_of_another_configuration_is_rejected(finished, caplog):
    longer = dataclasses.replace(finished, num_epochs=2)
    assert_rejected(
        change(longer, model={"joiner_dim": 20}),
        r"another configuration: model.joiner_dim: 16 -> 20.*another exp_dir",
    )
    assert_rejected(
        change(longer, terms={"ctc": None}), r"terms: \['ctc', .*\] -> \['embedding'"
    )
    assert "changed option" not in caplog.text
    train(change(longer, optim={"base_lr": 0.01}))  # a new rate is valid
    assert "changed option: optim.base_lr" in caplog.text
    assert load_newest_checkpoint(finished.exp_dir)["state"]["epoch"] == 2


def write_other_lang(folder):
    """Write other tokens, as many as those of the configuration."""
    texts = ["ALL OTHER WORDS ARE HERE", "THAT WE SET TO WEAR A SHOE"] * 9
    write_lang(train_bpe(texts, 24), folder)


def test_an_encoder_of_another_shape_is_rejected(pretrained, new_run):
    path = pretrained
    config = dataclasses.replace(new_run, init_encoder=str(path))
    encoder = dataclasses.replace(config.model.encoder, feedforward_dim=(16, 28))
    other = change(config, model={"encoder": encoder})
    assert_rejected(
        other,
        r"init_encoder .*pretrained.pt has another shape: "
        r"model.encoder.feedforward_dim: \[16, 24\] -> \[16, 28\] .*shape of that",
    )
    saved = load_checkpoint(path)
    del saved["model_config"]  # as a checkpoint of icefall
    save_checkpoint(path, saved)
    assert_rejected(
        other,
        r"model.encoder.feedforward_dim: \[16, 24\] -> \[16, 28\] .*shape of that",
    )
    del saved["model"]["encoder.encoders.0.layers.0.bypass.bypass_scale"]
    save_checkpoint(path, saved)
    assert_rejected(
        config,
        r"init_encoder .*pretrained.pt: .*differs in 1 tensors: encoder.*bypass_scale: "
        r"none in the file, \(16,\) in the model",
    )
    missing = dataclasses.replace(config, init_encoder="no.pt")
    assert_rejected(missing, "no.pt: no such checkpoint", FileNotFoundError)


def test_all_problems_of_fine_tuning_are_in_one_error(pretrained, new_run, tmp_path):
    """The error is raised before data is read: the data folder does not exist."""
    write_other_lang(tmp_path / "lang")
    tokens = tmp_path / "lang/tokens.txt"
    tokens.write_text(tokens.read_text().replace("<unk> 2", "<oov> 2"))
    encoder = dataclasses.replace(
        new_run.model.encoder, causal=False, chunk_size=(-1,), encoder_dim=(16, 28)
    )
    wrong = change(
        new_run,
        init_model=str(pretrained),
        model={"encoder": encoder, "joiner_dim": 20, "vocab_size": 25},
        data={
            "bpe_model": str(tmp_path / "lang/bpe.model"),
            "shar_dir": str(tmp_path / "nothing"),
        },
    )
    with pytest.raises(ValueError) as e:
        train(wrong)
    message = str(e.value)
    assert message.startswith("4 problems with the configuration:\n  1. ")
    for part in (
        "bpe.model has 24 tokens, but model.vocab_size is 25",
        "tokens.txt differs from the bpe.model next to it: 2: <oov> -> <unk> (",
        "model.encoder.causal: True -> False",
        "model.encoder.encoder_dim: [16, 24] -> [16, 28]",
        "model.joiner_dim: 16 -> 20",
        "model.vocab_size: 24 -> 25",
        "has other tokens than",
    ):
        assert part in message, part
    assert "chunk_size" not in message  # no weight depends on it
    assert not Path(wrong.exp_dir).exists()


def test_other_tokens_are_rejected_by_a_resumed_run(finished, tmp_path):
    write_other_lang(tmp_path / "lang")
    other = change(finished, data={"bpe_model": str(tmp_path / "lang/bpe.model")})
    assert_rejected(
        dataclasses.replace(other, num_epochs=2),
        r"exp has other tokens than .*lang/bpe.model: 3: .* -> .*; \d+ more \(",
    )
