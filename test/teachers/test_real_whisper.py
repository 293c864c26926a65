"""The real tiny.en, once through CTranslate2 and once through transformers."""

import struct

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from icefall_kd.teachers import build_teacher


def build(folder, **options):
    return build_teacher("hugging_face", folder, "tiny", **options)


@pytest.mark.parametrize("seconds", [3.0, 33.0])
def test_both_libraries_say_the_same(tiny_dir, tiny, prompts, seconds):
    speech = torch.cat(prompts)
    waves = [speech[: int(seconds * 16000)], prompts[1], prompts[2][:700]]
    batch = pad_sequence(waves, batch_first=True)
    lens = torch.tensor([len(w) for w in waves])
    hugging_face = build(tiny_dir)
    found, expected = (
        teacher.forward(batch, lens)[name]
        for teacher, name in ((hugging_face, "tiny"), (tiny, "whisper_tiny_en"))
    )
    assert found.lens.tolist() == expected.lens.tolist()
    torch.testing.assert_close(found.x, expected.x, atol=5e-3, rtol=5e-3)
    described = hugging_face.outputs["tiny"]
    assert (described.dim, described.frame_shift) == (384, 0.02)
    same_model = tiny.outputs["whisper_tiny_en"].fingerprint["model_sha256"]
    assert described.fingerprint["model_sha256"] == same_model


def test_layers_before_the_last_lead_to_it(tiny_dir, prompts):
    """The last block and the final norm make the last layer of the one before."""
    wave, lens = prompts[0][None], torch.tensor([len(prompts[0])])
    teacher = build(tiny_dir, layers=[0, 3, 4])
    assert list(teacher.outputs) == ["tiny_layer0", "tiny_layer3", "tiny_layer4"]
    said = teacher.forward(wave, lens)
    last = build(tiny_dir).forward(wave, lens)["tiny"]
    torch.testing.assert_close(said["tiny_layer4"].x, last.x)
    assert not torch.allclose(said["tiny_layer3"].x, last.x, atol=0.1)
    cosine = torch.cosine_similarity(said["tiny_layer0"].x, last.x, dim=-1)
    assert cosine.mean() < 0.5  # positions and mel, far from words


def variable(name, kind, data):
    """Return a variable of one dimension as CTranslate2 writes it."""
    head = struct.pack("<H", len(name) + 1) + name.encode() + b"\0"
    items = len(data) // {0: 4, 1: 1}[kind]
    return head + struct.pack("<BIBI", 1, items, kind, len(data)) + data


def written(path, spec, variables, version=6):
    name = spec.encode() + b"\0"
    head = struct.pack("<IH", version, len(name)) + name
    path.write_bytes(head + struct.pack("<II", 3, len(variables)) + b"".join(variables))
    return path.parent


def test_what_is_no_whisper_of_16_or_32_bits_is_refused(tiny_dir, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes((tiny_dir / "model.bin").read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.bin is cut off within encoder/"):
        build(tmp_path)
    path.write_bytes((tiny_dir / "model.bin").read_bytes()[:30])
    with pytest.raises(ValueError, match=r"model\.bin is damaged or cut off"):
        build(tmp_path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not of CTranslate2's form, or of version"):
        build(tmp_path)
    with pytest.raises(ValueError, match="is a 'TransformerSpec', not a Whisper"):
        build(written(path, "TransformerSpec", []))
    with pytest.raises(ValueError, match="not the encoder of a Whisper"):
        build(written(path, "WhisperSpec", [variable("decoder/x", 0, b"\0" * 8)]))
    quantised = variable("encoder/layer_0/ffn/linear_0/weight", 1, b"\1\2")
    with pytest.raises(ValueError, match=r"linear_0/weight is quantised.*float16"):
        build(written(path, "WhisperSpec", [quantised]))
