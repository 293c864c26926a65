"""Fixtures: the tokenizer of a recipe."""

import pytest

from icefall_kd.data.tokens import Tokenizer


@pytest.fixture(scope="session")
def tokenizer(asterisk):
    """The tokenizer of the Asterisk recipe, 150 tokens."""
    return Tokenizer(asterisk / "data/lang_bpe_150/bpe.model")
