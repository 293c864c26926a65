"""Fixtures: real prompts, a small student, its export, and a real teacher's field."""

import pytest
from students import call, write_own_words

from icefall_kd.bin import export
from icefall_kd.data.shar import write_shar


@pytest.fixture(scope="session")
def own_words(cuts, pristine_student, tokenizer, tmp_path_factory):
    """Ten prompts with the student's hypotheses as transcripts."""
    folder = tmp_path_factory.mktemp("own") / "own"
    return write_own_words(folder, cuts[:10], pristine_student, tokenizer)


@pytest.fixture(scope="session")
def model_dir(checkpoint, own_words, tmp_path_factory):
    """Export folder with both encoders, and int8 files of the streaming one."""
    folder = tmp_path_factory.mktemp("export")
    common = ["--checkpoint", str(checkpoint), "--out-dir", str(folder)]
    common += ["--check-shar", str(own_words), "--check"]
    call(export, *common, "--no-int8")
    call(export, *common, "--streaming", "--max-int8-loss", "1000")  # its own chunks
    return folder


@pytest.fixture(scope="session")
def pair(cuts, tmp_path_factory):
    """Shar folder of two prompts."""
    folder = tmp_path_factory.mktemp("pair") / "pair"
    write_shar(cuts[:2], folder)
    return folder
