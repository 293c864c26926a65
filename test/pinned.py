"""Marks for tests that need the versions in requirements.txt, or k2."""

import importlib.util

import pytest
import torch

pinned_only = pytest.mark.skipif(
    torch.__version__.split("+")[0] != "1.13.1",
    reason="needs the versions of requirements.txt",
)
needs_k2 = pytest.mark.skipif(importlib.util.find_spec("k2") is None, reason="needs k2")
