"""bin.parity on files of the reference, and on damaged files."""

import json
from pathlib import Path

import numpy as np
import pytest

from icefall_kd.bin.parity import main

DATA = Path(__file__).parents[1] / "zipformer/data"
OUTPUTS = {
    *("embed_out", "embed_out_lens", "encoder_out", "encoder_out_lens", "decoder_out"),
    *("joiner_logits", "ctc_log_probs", "simple_loss", "pruned_loss", "ctc_loss"),
}


@pytest.fixture
def damaged(tmp_path):
    """Return a function that writes the causal file with changed arrays."""
    with np.load(DATA / "causal.npz") as file:
        arrays = dict(file)

    def write(**changes):
        path = tmp_path / "damaged.npz"
        changed = {k: v for k, v in {**arrays, **changes}.items() if v is not None}
        np.savez(path, **changed)
        return str(path), arrays

    return write


@pytest.mark.parametrize(
    "name, more", [("noncausal", set()), ("causal", {"streaming_out", "state_shapes"})]
)
def test_outputs_of_the_reference_are_reproduced(name, more, capsys):
    assert main([str(DATA / f"{name}.npz"), "--tolerance", "1e-4"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {line[0] for line in lines} == OUTPUTS | more
    assert all(float(difference) <= 1e-4 for _, difference in lines)


@pytest.mark.parametrize("backend", ["k2", "torch"])
def test_values_and_gradients_of_the_pruned_rnnt_are_reproduced(
    backend, capsys, tmp_path
):
    if backend == "k2":
        pytest.importorskip("k2")
    assert main([str(DATA / "rnnt.npz"), "--backend", backend]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    kinds = ("simple", "px_grad", "py_grad", "am_grad", "lm_grad")
    scales = ("lm0.0_am0.0", "lm0.25_am0.0", "lm0.25_am0.1")
    expected = {f"{kind}_{scale}" for kind in kinds for scale in scales}
    assert {line[0] for line in lines} == expected | {"ranges", "pruned", "logits_grad"}
    assert all(float(difference) <= 1e-10 for _, difference in lines)
    with np.load(DATA / "rnnt.npz") as file:
        arrays = dict(file)
    arrays["px_grad_lm0.25_am0.1"][1] += 2e-6
    path = str(tmp_path / "changed.npz")
    np.savez(path, **arrays)
    assert main([path, "--backend", backend]) == 1
    assert "px_grad_lm0.25_am0.1 2e-06" in capsys.readouterr().out
    del arrays["logits"]
    np.savez(path, **arrays)
    assert main([path]) == 2
    assert "['logits'] are missing" in capsys.readouterr().err


def test_a_difference_above_the_tolerance_fails(damaged, capsys):
    with np.load(DATA / "causal.npz") as file:
        out = file["encoder_out"].copy()
    out[0, 3, 1] += 0.01
    path, _ = damaged(encoder_out=out)
    assert main([path]) == 1
    assert "encoder_out 0.01" in capsys.readouterr().out
    assert main([path, "--tolerance", "0.02"]) == 0


def test_other_shapes_and_unknown_outputs_fail(damaged, capsys):
    assert main([damaged(streaming_out=np.zeros((1, 2, 3)))[0]]) == 1
    assert "streaming_out inf" in capsys.readouterr().out
    assert main([damaged(state_shapes=json.dumps([[1, 2]]))[0]]) == 1
    assert "state_shapes inf" in capsys.readouterr().out
    assert main([damaged(attention_out=np.zeros(3))[0]]) == 1
    assert "attention_out inf" in capsys.readouterr().out


def test_a_missing_weight_is_named(damaged, capsys):
    name = "joiner.output_linear.bias"
    assert main([damaged(**{f"param/{name}": None})[0]]) == 2
    assert name in capsys.readouterr().err


def test_a_part_without_weights_and_outputs_is_skipped(damaged, capsys):
    with np.load(DATA / "causal.npz") as file:
        ctc = [k for k in file.files if k.startswith("param/ctc_output.")]
    none = dict.fromkeys(ctc)
    assert main([damaged(**none)[0]]) == 2
    message = capsys.readouterr().err
    assert "'ctc_log_probs', 'ctc_loss'" in message
    assert "no weights of 'ctc_output'" in message
    assert main([damaged(**none, ctc_log_probs=None, ctc_loss=None)[0]]) == 0


def test_an_unknown_key_of_the_config_is_named(damaged, capsys):
    with np.load(DATA / "causal.npz") as file:
        config = json.loads(str(file["config"]))
    path, _ = damaged(config=json.dumps({**config, "num_towers": 3}))
    assert main([path]) == 2
    assert "num_towers" in capsys.readouterr().err


def test_other_files_are_refused(tmp_path, damaged, capsys):
    assert main([str(tmp_path / "absent.npz")]) == 2
    assert "no such parity file" in capsys.readouterr().err
    text = tmp_path / "text.npz"
    text.write_text("hello")
    assert main([str(text)]) == 2
    assert "not an .npz" in capsys.readouterr().err
    assert main([damaged(x_lens=None)[0]]) == 2
    assert "x_lens" in capsys.readouterr().err
