"""What a process is tuned to."""

import os
import subprocess
import sys

import pytest

from icefall_kd.cpu import AVX512, mkl_vectors


@pytest.mark.parametrize(
    "vendor, flags, vectors",
    [
        ("AuthenticAMD", {"avx2", "fma"} | AVX512, "AVX-512"),
        ("AuthenticAMD", {"avx2", "fma", "avx512f"}, "AVX2"),
        ("AuthenticAMD", {"avx"}, None),
        ("GenuineIntel", {"avx2", "fma"} | AVX512, None),
    ],
)
def test_mkl_gets_what_the_processor_can_do(vendor, flags, vectors):
    text = f"vendor_id\t: {vendor}\nflags\t\t: {' '.join(flags)}\nbogomips\t: 1\n"
    assert mkl_vectors(text) == vectors


def test_a_processor_without_flags_is_left_alone():
    assert mkl_vectors("processor : 0\nFeatures : neon\n") is None


def test_tuning_changes_no_result_and_no_variable():
    code = """
import os, torch
from icefall_kd.cpu import tune_cpu
before = dict(os.environ)
tune_cpu()
assert dict(os.environ) == before
x = torch.arange(64.0).view(8, 8)
assert (x @ x).tolist() == [[float(v) for v in row] for row in %s]
"""
    x = [[8 * i + j for j in range(8)] for i in range(8)]
    square = [
        [sum(a * b for a, b in zip(row, column)) for column in zip(*x)] for row in x
    ]
    environment = {k: v for k, v in os.environ.items() if k != "MKL_DEBUG_CPU_TYPE"}
    subprocess.run([sys.executable, "-c", code % square], check=True, env=environment)
