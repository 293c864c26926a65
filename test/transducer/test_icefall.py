"""Checkpoints of icefall, with tensors that icefall computed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from icefall_kd.core.config import ModelConfig, ZipformerConfig, to_dict
from icefall_kd.transducer.checkpoint import load_model
from icefall_kd.transducer.icefall import infer_icefall_config, infer_model_config
from icefall_kd.transducer.model import build_model
from icefall_kd.transducer.parity import PREFIX, read_config

DATA = Path(__file__).parents[1] / "zipformer/data"
# Both reference models have these heads; the other options are icefall's defaults.
HEADS = {"query_head_dim": [8, 16, 8], "value_head_dim": [8, 12, 8]}
# Options that the weights do not determine.
TRAINING_ONLY = ("encoder_unmasked_dim", "chunk_size", "left_context_frames")


def read(name):
    """Return the arrays and the weights of a reference model."""
    with np.load(DATA / f"{name}.npz") as file:
        arrays = dict(file)
    weights = {
        k[len(PREFIX) :]: torch.from_numpy(v)
        for k, v in arrays.items()
        if k.startswith(PREFIX)
    }
    return arrays, weights


@pytest.fixture(params=["causal", "noncausal"])
def reference(request):
    """Arrays and weights of a small model of icefall."""
    return read(request.param)


def test_model_config_is_inferred_from_the_weights(reference):
    arrays, weights = reference
    found, expected = infer_model_config(weights, HEADS), read_config(arrays)
    for name in ("vocab_size", "decoder_dim", "joiner_dim", "context_size"):
        assert getattr(found, name) == getattr(expected, name)
    for name in ZipformerConfig.__dataclass_fields__:
        if name not in TRAINING_ONLY:
            assert getattr(found.encoder, name) == getattr(expected.encoder, name), name


def test_inferred_config_equals_that_of_the_run(reference):
    arrays, weights = reference
    run = to_dict(read_config(arrays))
    found = infer_icefall_config({"model": weights}, run["encoder"])
    defaults = to_dict(ZipformerConfig())
    not_inferred = {k: defaults[k] for k in (*TRAINING_ONLY, "dropout")}
    assert found["encoder"].items() <= {**run["encoder"], **not_inferred}.items()
    assert {k: run[k] for k in found if k != "encoder"} == {
        k: v for k, v in found.items() if k != "encoder"
    }
    assert len(found) == 5
    run["encoder"]["query_head_dim"] = [16, 16, 16]
    with pytest.raises(ValueError, match="query_head_dim 16.*These fit"):
        infer_icefall_config({"model": weights}, run["encoder"])


def test_loaded_model_computes_the_outputs_of_icefall(reference, tmp_path):
    arrays, weights = reference
    torch.save({"model": weights}, tmp_path / "pretrained.pt")
    model, tokenizer, info = load_model(tmp_path / "pretrained.pt", heads=HEADS)
    assert tokenizer is None and info == {} and not model.training
    config = json.loads(str(arrays["config"]))
    if config["causal"]:
        model.encoder.set_chunk(config["chunk_size"], config["left_context_frames"])
    with torch.no_grad():
        x, lens = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["x_lens"])
        y, _ = model.forward_encoder(x, lens)
        log_probs = model.ctc_output(y)
    np.testing.assert_allclose(y, arrays["encoder_out"], atol=1e-4)
    np.testing.assert_allclose(log_probs, arrays["ctc_log_probs"], atol=1e-4)


def test_the_heads_are_read_from_a_training_checkpoint_of_icefall(tmp_path):
    _, weights = read("noncausal")
    options = {k: ",".join(map(str, v)) for k, v in HEADS.items()}
    options.update(num_heads="2,4,2", pos_head_dim="4", exp_dir=Path("zipformer/exp"))
    rest = {"optimizer": None, "model_avg": weights, "best_valid_loss": float("inf")}
    torch.save({"model": weights, **rest, **options}, tmp_path / "epoch-3.pt")
    model, _, _ = load_model(tmp_path / "epoch-3.pt")
    assert model.encoder.config.num_heads == (2, 4, 2)
    assert model.encoder.config.query_head_dim == (8, 16, 8)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_a_model_with_default_heads_needs_no_option(tmp_path):
    encoder = ZipformerConfig(
        num_encoder_layers=(1, 2, 1, 1, 1, 1),
        encoder_dim=(16, 24, 32, 32, 24, 16),
        encoder_unmasked_dim=(16,),
        feedforward_dim=(16, 24, 32, 32, 24, 16),
        causal=True,
        chunk_size=(16, -1),
    )
    weights = build_model(ModelConfig(encoder, 30, 16, 24, 1)).state_dict()
    found = infer_model_config(weights, {})
    assert (found.vocab_size, found.decoder_dim, found.joiner_dim) == (30, 16, 24)
    assert found.context_size == 1
    for name in ZipformerConfig.__dataclass_fields__:
        if name not in TRAINING_ONLY:
            assert getattr(found.encoder, name) == getattr(encoder, name), name


def test_wrong_heads_are_refused_with_the_tensor_and_fitting_heads(tmp_path):
    _, weights = read("noncausal")
    torch.save({"model": weights}, tmp_path / "a.pt")
    with pytest.raises(ValueError) as e:
        load_model(tmp_path / "a.pt")
    message = str(e.value)
    assert "a.pt: stack 0 does not have 2 heads with query_head_dim 32" in message
    layer = "encoder.encoders.0.layers.0.self_attn_weights"
    assert f"{layer}.in_proj.weight has 40 rows, not 136" in message
    assert "2 heads of 8, 4, 8" in message


@pytest.mark.parametrize(
    "heads, message",
    [
        ({**HEADS, "pos_head_dim": 8}, "linear_pos|in_proj"),
        ({**HEADS, "num_heads": [2, 4, 4]}, "stack 2 does not have 4 heads"),
        ({**HEADS, "num_heads": [2, 4]}, "num_heads .* each of 3 stacks"),
        ({**HEADS, "head_dim": 8}, r"\['head_dim'\]"),
    ],
)
def test_heads_that_do_not_fit_are_refused(heads, message):
    with pytest.raises(ValueError, match=message):
        infer_model_config(read("causal")[1], heads)


def test_layers_of_a_stack_with_different_shapes_are_refused(tmp_path):
    _, weights = read("noncausal")
    name = "encoder.encoders.1.encoder.layers.1.feed_forward2.in_proj.weight"
    weights[name] = weights[name][:-1]
    torch.save({"model": weights}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"a.pt: weights do not fit.*{name}"):
        load_model(tmp_path / "a.pt", heads=HEADS)


def test_a_ctc_model_has_no_transducer(tmp_path):
    _, weights = read("noncausal")
    parts = ("encoder_embed.", "encoder.", "ctc_output.")
    ctc = {k: v for k, v in weights.items() if k.startswith(parts)}
    ctc["attention_decoder.embed.weight"] = torch.zeros(2, 3)
    torch.save({"model": ctc}, tmp_path / "a.pt")
    model, _, _ = load_model(tmp_path / "a.pt", heads=HEADS, needed=())
    assert model.joiner is None and model.vocab_size == 20
    with pytest.raises(ValueError, match="a.pt: .* no decoder and no joiner"):
        load_model(tmp_path / "a.pt", heads=HEADS)


def test_a_transducer_without_a_ctc_head_loads(tmp_path):
    _, weights = read("noncausal")
    bare = {k: v for k, v in weights.items() if not k.startswith("ctc_output")}
    torch.save({"model": bare}, tmp_path / "a.pt")
    model, _, _ = load_model(tmp_path / "a.pt", heads=HEADS)
    assert model.ctc_output is None and model.joiner is not None


@pytest.mark.parametrize(
    "missing",
    ["encoder.encoders.1", "encoder_embed.conv.4", "encoder.downsample_output"],
)
def test_incomplete_weights_are_refused(missing, tmp_path):
    _, weights = read("noncausal")
    rest = {k: v for k, v in weights.items() if not k.startswith(missing)}
    torch.save({"model": rest}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a.pt: not the weights of a Zipformer"):
        load_model(tmp_path / "a.pt", heads=HEADS)


def test_head_options_are_refused_for_a_checkpoint_with_a_configuration(tmp_path):
    torch.save({"model": {}, "model_config": {}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=re.escape("leave out ['num_heads']")):
        load_model(tmp_path / "a.pt", heads={"num_heads": 4})
