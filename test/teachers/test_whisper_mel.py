import numpy as np
import torch
from faster_whisper.feature_extractor import FeatureExtractor

from icefall_kd.teachers.whisper_mel import log_mel


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


def test_a_row_is_the_same_in_any_batch(prompts):
    waves = torch.stack([w[:16000] for w in prompts])
    together = log_mel(waves, 80)
    assert together.shape == (len(prompts), 80, 100)
    for row, wave in zip(together, waves):
        torch.testing.assert_close(row, log_mel(wave[None], 80)[0], atol=1e-5, rtol=0)
