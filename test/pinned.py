"""A mark for tests that need the versions in requirements.txt."""

import pytest
import torch

pinned_only = pytest.mark.skipif(
    torch.__version__.split("+")[0] != "1.13.1",
    reason="needs the versions of requirements.txt",
)
