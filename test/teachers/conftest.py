"""Real prompts as waves."""

import pytest
import torch

from icefall_kd.fields.reader import open_shar


@pytest.fixture(scope="session")
def prompts(asterisk):
    """Twelve test prompts of 1 to 6 s: list of (S,) float32, 16 kHz."""
    cuts = open_shar(asterisk / "data/shar/test")
    chosen = [c for c in cuts if 1.0 < c.duration < 6.0][:12]
    return [torch.from_numpy(c.load_audio()[0]) for c in chosen]
