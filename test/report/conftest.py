"""A baseline and a distilled system with results and trainings."""

import pytest
from report_files import CHUNKS, make_data_config, write_result, write_training


@pytest.fixture
def exp(tmp_path):
    """Return the folder of both systems; only kd has a result of sherpa-onnx."""
    folder = tmp_path / "exp"
    for name, wrong, losses in (
        ("baseline", 32, [1.5, 1.25, 1.125]),
        ("kd", 16, [1.25, 0.75, 0.5]),
    ):
        write_result(folder / name / "decode", wrong)
        write_result(folder / name / "decode", wrong + 4, chunking=CHUNKS)
        origin = folder / name / "pretrain/pretrained.pt" if name == "kd" else None
        write_training(
            folder / name / "finetune",
            losses,
            init_encoder=origin and str(origin),
            data=make_data_config("train"),
        )
    write_training(
        folder / "kd/pretrain",
        [0.9, 0.8],
        data=make_data_config("train", "unlabelled"),
        seed=7,
    )
    write_result(
        folder / "kd/sherpa",
        16,
        prefix="sherpa-",
        engine="sherpa-onnx 2.0.1",
        int8=True,
    )
    return folder
