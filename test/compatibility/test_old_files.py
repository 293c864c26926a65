"""Files that commit c51d160 wrote still load and give the same numbers.

The folder holds an averaged student, a recogniser over cached embeddings ("adapter" at
that time), their configurations, a checkpoint of training such a recogniser, and a Shar
set with two fields.  expected.json holds sums of absolute values, and the losses of
updates 6 to 8 of the training, that the same commit computed from them.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from lhotse import CutSet
from run_metrics import metrics

from icefall_kd.fields import load_decoder
from icefall_kd.training.config import parse_config
from icefall_kd.training.run import train
from icefall_kd.transducer.checkpoint import load_checkpoint, load_model, unpack_bytes

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
def test_a_configuration_is_read_but_for_a_removed_option(name, tmp_path):
    path = HERE / f"{name}.yaml"
    remedy = r"\.yaml: unknown option model.encoder.warmup_batches; set .*warmup_hours"
    with pytest.raises(ValueError, match=remedy):
        parse_config(["--config", str(path)])
    options = yaml.safe_load(path.read_text())
    del options["model"]["encoder"]["warmup_batches"]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(options))
    config = parse_config(["--config", str(path)])
    assert config.num_epochs == 1 and config.data.train == ("train",)


@pytest.mark.parametrize("field", ["wise", "old"])
def test_a_field_decodes_as_before(field):
    decode = load_decoder(HERE / "dev", field)
    sums = {
        cut.id: float(abs(decode(getattr(cut, f"load_{field}")())).sum())
        for cut in CutSet.from_shar(in_dir=HERE / "dev")
    }
    assert sums == pytest.approx(EXPECTED[field], rel=1e-4)


def test_training_resumes_as_before(tmp_path):
    exp_dir, bpe_model = tmp_path / "exp", tmp_path / "bpe.model"
    exp_dir.mkdir()
    shutil.copy(HERE / "checkpoint-5.pt", exp_dir)
    saved = load_checkpoint(HERE / "checkpoint-5.pt")
    bpe_model.write_bytes(unpack_bytes(saved["bpe_model"]))
    options = {**saved["config"], "exp_dir": str(exp_dir)}
    options["data"].update(shar_dir=str(HERE), bpe_model=str(bpe_model))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(options))
    config = parse_config(["--config", str(tmp_path / "config.yaml")])
    train(config)
    losses = [line["loss"] for line in metrics(config)]
    assert losses == pytest.approx(EXPECTED["losses"], rel=1e-5)
