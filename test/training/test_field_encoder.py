"""Training of a recogniser over cached embeddings."""

import dataclasses

import numpy as np
import pytest
import torch
from lhotse import CutSet

from icefall_kd.bin import align
from icefall_kd.bin.decode import get_parser, run
from icefall_kd.core.config import FieldEncoderConfig, ModelConfig
from icefall_kd.core.frames import align_frames
from icefall_kd.dataset.dataset import load_batch
from icefall_kd.fields.reader import load_field
from icefall_kd.training.checkpoint import write_average
from icefall_kd.training.config import parse_config
from icefall_kd.training.run import train
from icefall_kd.training.setup import build_setup
from icefall_kd.transducer.checkpoint import load_model
from icefall_kd.transducer.field_encoder import draw_time_mask
from icefall_kd.transducer.model import build_model

FIELD_ENCODER = FieldEncoderConfig(
    fields=("teacher_a", "teacher_b"), dim=16, num_layers=2
)


@pytest.fixture
def field_config(only):
    """Return a run of a small field encoder over both teachers."""
    config = only("transducer", "ctc")
    model = ModelConfig(
        field_encoder=FIELD_ENCODER, vocab_size=24, decoder_dim=16, joiner_dim=16
    )
    data = dataclasses.replace(config.data, spec_augment=False)
    return dataclasses.replace(config, model=model, data=data)


def test_input_frames_are_the_fields_at_the_times_of_the_student(field_config, config):
    setup, audio_setup = build_setup(field_config), build_setup(config)
    assert setup.config.model.field_encoder.dims == (6, 3)
    cuts = list(setup.train_stream)[:4]
    batch = load_batch(CutSet.from_cuts(cuts), setup.codecs)
    x, lens = setup.student.model.get_inputs(batch)
    _, expected = audio_setup.student.model.forward_encoder(
        batch["features"], batch["feature_lens"]
    )
    assert lens.tolist() == expected.tolist()
    assert x.shape == (4, int(lens.max()), 9)
    field = batch["fields"]["teacher_a"]
    aligned = align_frames(field["x"], field["lens"], 0.02, lens)
    torch.testing.assert_close(x[:, :, :6], aligned)


def test_the_fields_are_normalised_by_their_statistics(field_config):
    setup = build_setup(field_config)
    encoder = setup.student.model.encoder
    assert encoder.mean.shape == (9,) and encoder.std.min() > 0
    frames = [
        load_field(c, "teacher_a", setup.codecs["teacher_a"])
        for c in setup.train_stream
    ]
    expected = torch.from_numpy(np.concatenate(frames))
    torch.testing.assert_close(encoder.mean[:6], expected.mean(0), atol=1e-4, rtol=1e-3)


def test_an_utterance_alone_and_in_a_batch_gives_the_same_output():
    torch.manual_seed(0)
    config = dataclasses.replace(FIELD_ENCODER, dims=(6, 3))
    model = build_model(ModelConfig(field_encoder=config, vocab_size=24, decoder_dim=8))
    model.eval()
    x, lens = torch.randn(3, 30, 9), torch.tensor([30, 17, 1])
    together, _ = model.forward_encoder(x, lens)
    for row, n in enumerate(lens.tolist()):
        alone, _ = model.forward_encoder(x[row : row + 1, :n], lens[row : row + 1])
        torch.testing.assert_close(together[row, :n], alone[0], atol=1e-5, rtol=1e-5)
        assert (together[row, n:] == 0).all()


def test_masks_have_the_given_share_of_frames():
    torch.manual_seed(0)
    mask = draw_time_mask(torch.tensor([1000, 200]), 1000, 0.2, 5)
    assert 0.1 < 1 - mask[0].mean() <= 0.2 and 0.1 < 1 - mask[1, :200].mean() <= 0.2
    assert (mask[1, 200:] == 1).all()
    assert (draw_time_mask(torch.tensor([9]), 9, 0.0, 5) == 1).all()


def test_a_field_model_trains_resumes_and_decodes(field_config, data_dir, tmp_path):
    train(dataclasses.replace(field_config, num_epochs=1))
    train(field_config)  # resumes
    assert (tmp_path / "exp/epoch-2.pt").is_file()
    path = tmp_path / "pretrained.pt"
    write_average(tmp_path / "exp", 0, 1, path)
    model, tokenizer, _ = load_model(path)
    assert model.fields == ("teacher_a", "teacher_b") and tokenizer is not None
    options = ["--checkpoint", str(path), "--shar-dir", str(data_dir / "shar/dev")]
    result = run(get_parser().parse_args([*options, "--out-dir", str(tmp_path / "o")]))
    assert result["utterances"] == 4
    ctm = ["--output", str(tmp_path / "dev.ctm")]
    times = align.run(align.get_parser().parse_args([*options, *ctm]))
    assert sum(map(len, times.values())) == result["words"]
    with pytest.raises(ValueError, match="not causal and cannot stream"):
        run(get_parser().parse_args([*options, "--out-dir", "o", "--streaming"]))


def test_cuts_without_the_fields_of_the_model_may_not_be_skipped(field_config):
    data = dataclasses.replace(field_config.data, missing="skip")
    with pytest.raises(ValueError, match="data.missing is skip.*field_encoder"):
        build_setup(dataclasses.replace(field_config, data=data))


def test_a_field_model_trains_in_bfloat16(field_config):
    train(dataclasses.replace(field_config, num_epochs=1, amp="bf16"))


def test_a_missing_field_is_named(field_config):
    encoder = dataclasses.replace(FIELD_ENCODER, fields=("absent",))
    model = dataclasses.replace(field_config.model, field_encoder=encoder)
    with pytest.raises(FileNotFoundError, match="'absent' does not exist"):
        build_setup(dataclasses.replace(field_config, model=model))
    encoder = dataclasses.replace(FIELD_ENCODER, fields=())
    model = dataclasses.replace(field_config.model, field_encoder=encoder)
    with pytest.raises(ValueError, match="model.field_encoder.fields is empty"):
        build_setup(dataclasses.replace(field_config, model=model))


def test_options_under_the_former_name_adapter_are_read(tmp_path):
    file = tmp_path / "adapter.yaml"
    file.write_text(
        "model: {adapter: {fields: [teacher_a], dim: 16}}\nterms: {ctc: {}}\n"
    )
    arguments = ["--exp-dir", "x", "--config", str(file)]
    config = parse_config([*arguments, "--model.adapter.num_layers", "3"])
    expected = FieldEncoderConfig(fields=("teacher_a",), dim=16, num_layers=3)
    assert config.model.field_encoder == expected
