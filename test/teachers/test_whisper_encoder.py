"""Whisper's features and layers in PyTorch, and weights of CTranslate2."""

import struct

import numpy as np
import pytest
import torch
from faster_whisper.feature_extractor import FeatureExtractor
from torch.nn.utils.rnn import pad_sequence

from icefall_kd.teachers import build_teacher
from icefall_kd.teachers.whisper_encoder import compute_log_mel, make_mel_filters


@pytest.mark.parametrize("num_mels", [80, 128])
def test_filters_are_those_of_faster_whisper(num_mels):
    expected = FeatureExtractor(feature_size=num_mels).mel_filters
    found = make_mel_filters(num_mels).t().numpy()
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-6 * expected.max()


def test_features_are_those_of_faster_whisper(prompts):
    reference = FeatureExtractor()
    for wave in prompts:
        wave = wave[: len(wave) // 320 * 320]
        expected = reference(wave.numpy(), padding=0)
        found = compute_log_mel(wave.unsqueeze(0), 80)[0].numpy()
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-3


def test_128_filters_are_those_of_faster_whisper(prompts):
    wave = prompts[0][:16000]
    expected = FeatureExtractor(feature_size=128)(wave.numpy(), padding=0)
    assert np.abs(compute_log_mel(wave[None], 128)[0].numpy() - expected).max() < 1e-3


@pytest.mark.parametrize("num_mels", [80, 128])
def test_features_are_those_of_transformers(prompts, num_mels):
    import transformers

    extractor = transformers.WhisperFeatureExtractor(num_mels, chunk_length=6)
    for wave in prompts[:4]:
        expected = extractor(wave.numpy(), sampling_rate=16000).input_features[0]
        padded = torch.nn.functional.pad(wave, (0, 96000 - len(wave)))
        found = compute_log_mel(padded[None], num_mels)[0].numpy()
        assert found.shape == expected.shape == (num_mels, 600)
        assert np.abs(found - expected).max() < 1e-4


def test_a_row_is_the_same_in_any_batch(prompts):
    waves = torch.stack([w[:16000] for w in prompts])
    together = compute_log_mel(waves, 80)
    assert together.shape == (len(prompts), 80, 100)
    for row, wave in zip(together, waves):
        torch.testing.assert_close(
            row, compute_log_mel(wave[None], 80)[0], atol=1e-5, rtol=0
        )


def build(folder, **options):
    return build_teacher("hugging_face", folder, "tiny", **options)


@pytest.mark.parametrize("seconds", [3.0, 33.0])
def test_both_libraries_give_the_same_embeddings(tiny_dir, tiny, prompts, seconds):
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


def test_lower_layers_differ_from_the_last(tiny_dir, prompts):
    wave, lens = prompts[0][None], torch.tensor([len(prompts[0])])
    teacher = build(tiny_dir, layers=[0, 3, 4])
    assert list(teacher.outputs) == ["tiny_layer0", "tiny_layer3", "tiny_layer4"]
    outputs = teacher.forward(wave, lens)
    last = build(tiny_dir).forward(wave, lens)["tiny"]
    torch.testing.assert_close(outputs["tiny_layer4"].x, last.x)
    assert not torch.allclose(outputs["tiny_layer3"].x, last.x, atol=0.1)
    cosine = torch.cosine_similarity(outputs["tiny_layer0"].x, last.x, dim=-1)
    assert cosine.mean() < 0.5  # layer 0 contains only positions and features


def variable(name, kind, data):
    """Return a one-dimensional variable in CTranslate2's format.

    Args:
      kind: 0 for float32, 1 for int8.
    """
    head = struct.pack("<H", len(name) + 1) + name.encode() + b"\0"
    items = len(data) // {0: 4, 1: 1}[kind]
    return head + struct.pack("<BIBI", 1, items, kind, len(data)) + data


def write_model(path, spec, variables, version=6):
    name = spec.encode() + b"\0"
    head = struct.pack("<IH", version, len(name)) + name
    path.write_bytes(head + struct.pack("<II", 3, len(variables)) + b"".join(variables))
    return path.parent


def test_other_files_and_quantised_weights_are_refused(tiny_dir, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes((tiny_dir / "model.bin").read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.bin is truncated within encoder/"):
        build(tmp_path)
    path.write_bytes((tiny_dir / "model.bin").read_bytes()[:30])
    with pytest.raises(ValueError, match=r"model\.bin is damaged"):
        build(tmp_path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="model.bin is not a CTranslate2 model"):
        build(tmp_path)
    with pytest.raises(ValueError, match="is a 'TransformerSpec', not a Whisper"):
        build(write_model(path, "TransformerSpec", []))
    with pytest.raises(ValueError, match="not the encoder of a Whisper"):
        build(write_model(path, "WhisperSpec", [variable("decoder/x", 0, b"\0" * 8)]))
    quantised = variable("encoder/layer_0/ffn/linear_0/weight", 1, b"\1\2")
    with pytest.raises(ValueError, match=r"linear_0/weight is quantised.*float16"):
        build(write_model(path, "WhisperSpec", [quantised]))
