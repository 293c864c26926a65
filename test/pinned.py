"""A mark for tests of the versions in requirements.txt."""

import pytest
import torch

pinned_only = pytest.mark.skipif(
    torch.__version__.split("+")[0] != "1.13.1",
    reason="applies to the versions of requirements.txt only",
)
