"""The real tiny.en, once through CTranslate2 and once through transformers."""

import pytest
import torch
from ct2_weights import write_as_hugging_face
from torch.nn.utils.rnn import pad_sequence

from icefall_kd.teachers import build_teacher


@pytest.fixture(scope="session")
def folder(tiny_dir, tmp_path_factory):
    """Folder of the encoder of tiny.en as transformers has it."""
    return write_as_hugging_face(tiny_dir, tmp_path_factory.mktemp("tiny") / "hf")


@pytest.mark.parametrize("seconds", [3.0, 33.0])
def test_both_libraries_say_the_same(folder, tiny, prompts, seconds):
    speech = torch.cat(prompts)
    waves = [speech[: int(seconds * 16000)], prompts[1], prompts[2][:700]]
    batch = pad_sequence(waves, batch_first=True)
    lens = torch.tensor([len(w) for w in waves])
    hugging_face = build_teacher("hugging_face", folder, "tiny")
    found, expected = (
        teacher.forward(batch, lens)[name]
        for teacher, name in ((hugging_face, "tiny"), (tiny, "whisper_tiny_en"))
    )
    assert found.lens.tolist() == expected.lens.tolist()
    torch.testing.assert_close(found.x, expected.x, atol=5e-3, rtol=5e-3)
    described = hugging_face.outputs["tiny"]
    assert (described.dim, described.frame_shift) == (384, 0.02)
