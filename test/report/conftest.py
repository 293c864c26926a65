"""A baseline and a distilled system with results and trainings."""

import pytest
from reported import CHUNKS, decoded, train_set, trained


@pytest.fixture
def exp(tmp_path):
    """Return the folder of both systems; only kd has a result of sherpa-onnx."""
    folder = tmp_path / "exp"
    for name, wrong, losses in (
        ("baseline", 32, [1.5, 1.25, 1.125]),
        ("kd", 16, [1.25, 0.75, 0.5]),
    ):
        decoded(folder / name / "decode", wrong)
        decoded(folder / name / "decode", wrong + 4, chunking=CHUNKS)
        origin = folder / name / "pretrain/pretrained.pt" if name == "kd" else None
        trained(
            folder / name / "finetune",
            losses,
            init_encoder=origin and str(origin),
            data=train_set("train"),
        )
    trained(
        folder / "kd/pretrain",
        [0.9, 0.8],
        data=train_set("train", "unlabelled"),
        seed=7,
    )
    decoded(
        folder / "kd/sherpa",
        16,
        prefix="sherpa-",
        engine="sherpa-onnx 2.0.1",
        int8=True,
    )
    return folder
