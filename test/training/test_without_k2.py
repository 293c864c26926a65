"""The commands in a Python that has no k2."""

import shutil
import subprocess
import sys

import pytest
import yaml

from icefall_kd.core.config import to_dict
from icefall_kd.training.checkpoint import load_newest_checkpoint

# Runs commands, one on each line of stdin: the name and the arguments.
RUNNER = """if True:
    import importlib, shlex, sys

    class NoK2:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("k2", "_k2"):
                raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    sys.meta_path.insert(0, NoK2())
    for line in sys.stdin:
        sys.argv = shlex.split(line)
        importlib.import_module(f"icefall_kd.bin.{sys.argv[0]}").main()
    assert not {"k2", "_k2"} & set(sys.modules)
"""


def run(*commands):
    return subprocess.run(
        [sys.executable, "-c", RUNNER],
        input="\n".join(commands),
        capture_output=True,
        text=True,
    )


def test_only_fast_beam_search_needs_k2(only, data_dir, tmp_path):
    pytest.importorskip("sherpa_onnx")
    config = only("transducer", "ctc", num_epochs=1)
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(to_dict(config)))
    dev = shutil.copytree(data_dir / "shar/dev", tmp_path / "dev")
    checkpoint = f"{config.exp_dir}/pretrained.pt"
    decode = f"decode --checkpoint {checkpoint} --shar-dir {dev}"
    done = run(
        f"train --config {tmp_path}/conf.yaml",
        f"average --exp-dir {config.exp_dir} --avg 1",
        f"{decode} --out-dir {tmp_path}/decode",
        f"align --checkpoint {checkpoint} --shar-dir {dev} --output {tmp_path}/dev.ctm",
        f"export --checkpoint {checkpoint} --out-dir {tmp_path}/export",
        f"transcribe --model-dir {tmp_path}/export --shar-dir {dev} "
        f"--out-dir {tmp_path}/sherpa",
        f"extract --shar-dir {dev} --teacher zipformer --model-dir {checkpoint} "
        "--field student --codec fp16",
    )
    assert done.returncode == 0, done.stderr
    assert load_newest_checkpoint(config.exp_dir)["state"]["epoch"] == 1
    for name in ("dev.ctm", "decode", "sherpa"):
        assert (tmp_path / name).exists()
    assert list(dev.glob("student.*"))
    done = run(f"{decode} --method fast_beam_search --out-dir {tmp_path}/fast")
    assert done.returncode == 1
    assert "'k2' cannot be imported" in done.stderr
    assert "k2-fsa.github.io/k2, or use another search" in done.stderr
    assert not (tmp_path / "fast").exists()
