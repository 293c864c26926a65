"""Files that commit c51d160 wrote still load and give the same numbers.

The folder holds an averaged student, a recogniser over cached embeddings ("adapter" at
that time), their configurations, and a Shar set with two fields.  expected.json holds
sums of absolute values that the same commit computed from them.
"""

import json
from pathlib import Path

import pytest
import torch
from lhotse import CutSet

from icefall_kd.fields import load_decoder
from icefall_kd.training.config import parse_config
from icefall_kd.transducer.checkpoint import load_model

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "expected.json").read_text())


@pytest.mark.parametrize("name, dim", [("pretrained", 80), ("adapter", 9)])
def test_a_checkpoint_loads_and_encodes_as_before(name, dim):
    model, tokenizer, _ = load_model(HERE / f"{name}.pt")
    assert tokenizer.vocab_size == 24
    torch.manual_seed(0)
    features = torch.randn(1, 60, dim)
    with torch.no_grad():
        x, lens = model.forward_encoder(features, torch.tensor([60]))
    total, length = EXPECTED[name]
    assert lens.tolist() == length
    assert float(x.abs().sum()) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("name", ["config", "adapter"])
def test_a_configuration_is_read(name):
    config = parse_config(["--config", str(HERE / f"{name}.yaml")])
    assert config.num_epochs == 1 and config.data.train == ("train",)


@pytest.mark.parametrize("field", ["wise", "old"])
def test_a_field_decodes_as_before(field):
    decode = load_decoder(HERE / "dev", field)
    sums = {
        cut.id: float(abs(decode(getattr(cut, f"load_{field}")())).sum())
        for cut in CutSet.from_shar(in_dir=HERE / "dev")
    }
    assert sums == pytest.approx(EXPECTED[field], rel=1e-4)
