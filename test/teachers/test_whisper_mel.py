import numpy as np
import pytest
import torch
from faster_whisper.feature_extractor import FeatureExtractor

from icefall_kd.teachers.whisper_encoder import log_mel, mel_filters


@pytest.mark.parametrize("num_mels", [80, 128])
def test_filters_are_those_of_faster_whisper(num_mels):
    expected = FeatureExtractor(feature_size=num_mels).mel_filters
    found = mel_filters(num_mels).t().numpy()
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-6 * expected.max()


def test_features_are_those_of_faster_whisper(prompts):
    reference = FeatureExtractor()
    for wave in prompts:
        wave = wave[: len(wave) // 320 * 320]
        expected = reference(wave.numpy(), padding=0)
        found = log_mel(wave.unsqueeze(0), 80)[0].numpy()
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-3


def test_128_filters_are_those_of_faster_whisper(prompts):
    wave = prompts[0][:16000]
    expected = FeatureExtractor(feature_size=128)(wave.numpy(), padding=0)
    assert np.abs(log_mel(wave[None], 128)[0].numpy() - expected).max() < 1e-3


@pytest.mark.parametrize("num_mels", [80, 128])
def test_features_are_those_of_transformers(prompts, num_mels):
    import transformers

    extractor = transformers.WhisperFeatureExtractor(num_mels, chunk_length=6)
    for wave in prompts[:4]:
        expected = extractor(wave.numpy(), sampling_rate=16000).input_features[0]
        padded = torch.nn.functional.pad(wave, (0, 96000 - len(wave)))
        found = log_mel(padded[None], num_mels)[0].numpy()
        assert found.shape == expected.shape == (num_mels, 600)
        assert np.abs(found - expected).max() < 1e-4


def test_a_row_is_the_same_in_any_batch(prompts):
    waves = torch.stack([w[:16000] for w in prompts])
    together = log_mel(waves, 80)
    assert together.shape == (len(prompts), 80, 100)
    for row, wave in zip(together, waves):
        torch.testing.assert_close(row, log_mel(wave[None], 80)[0], atol=1e-5, rtol=0)
