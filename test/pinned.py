"""Tests of what holds for the stack of requirements.txt alone."""

import pytest
import torch

of_the_pins = pytest.mark.skipif(
    torch.__version__.split("+")[0] != "1.13.1",
    reason="what is asked of the pins is not asked of another stack",
)
