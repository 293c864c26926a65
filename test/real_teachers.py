"""Fixtures: the real Whisper tiny.en, fetched as the recipe's stage 0 does."""

import pytest
from recipe import locked_recipe

from icefall_kd.teachers import build_teacher
from icefall_kd.teachers.fetch import fetch_teacher


@pytest.fixture(scope="session")
def tiny_dir():
    """Folder of Whisper tiny.en."""
    with locked_recipe() as recipe:
        folder = recipe / "download/teachers/whisper_tiny_en"
        fetch_teacher("whisper_tiny_en", folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_dir):
    """Whisper tiny.en, float32, one thread."""
    return build_teacher("whisper_tiny_en", tiny_dir, num_threads=1)
