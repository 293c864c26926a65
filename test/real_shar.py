"""Fixtures: a small Shar of real prompts, with and without a real teacher's field."""

import pytest
from shar_files import copy_shar

from icefall_kd.data.shar import perturb_speeds, write_shar
from icefall_kd.fields.extract import extract
from icefall_kd.fields.reader import open_shar

SHARD_SIZE = 5
NUM_CUTS = 18  # the last of 4 shards is not full


@pytest.fixture(scope="session")
def pristine_shar(asterisk, tmp_path_factory):
    """6 test prompts at 3 speeds, 5 cuts a shard; read-only."""
    cuts = open_shar(asterisk / "data/shar/test")
    prompts = [c for c in cuts if 1.0 < c.duration < 4.0][: NUM_CUTS // 3]
    folder = tmp_path_factory.mktemp("shar") / "prompts"
    write_shar(perturb_speeds(prompts, (0.9, 1.0, 1.1)), folder, shard_size=SHARD_SIZE)
    return folder


@pytest.fixture
def shar(pristine_shar, tmp_path):
    """A copy of the small Shar, without fields."""
    return copy_shar(pristine_shar, tmp_path / "shar")


@pytest.fixture(scope="session")
def extracted_shar(pristine_shar, tiny, tmp_path_factory):
    """The small Shar with the field whisper_tiny_en; read-only."""
    folder = tmp_path_factory.mktemp("extracted") / "shar"
    copy_shar(pristine_shar, folder)
    extract(folder, [tiny])
    return folder


@pytest.fixture
def extracted(extracted_shar, tmp_path):
    """A copy of the small Shar with the field whisper_tiny_en."""
    return copy_shar(extracted_shar, tmp_path / "extracted")
