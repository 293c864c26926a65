"""CPU counts, thread numbers and tuning of a process."""

import os
import subprocess
import sys

import pytest

from icefall_kd.bin import extract, make_shar, pseudo_label, transcribe
from icefall_kd.core.cpu import (
    AVX512,
    count_cpus,
    default_num_threads,
    default_num_workers,
    find_mkl_cpu_type,
    has_fast_bf16,
)


@pytest.mark.parametrize(
    "vendor, flags, cpu_type",
    [
        ("AuthenticAMD", {"avx2", "fma"} | AVX512, "AVX-512"),
        ("AuthenticAMD", {"avx2", "fma", "avx512f"}, "AVX2"),
        ("AuthenticAMD", {"avx"}, None),
        ("GenuineIntel", {"avx2", "fma"} | AVX512, None),
    ],
)
def test_mkl_cpu_type_follows_the_processor_flags(vendor, flags, cpu_type):
    text = f"vendor_id\t: {vendor}\nflags\t\t: {' '.join(flags)}\nbogomips\t: 1\n"
    assert find_mkl_cpu_type(text) == cpu_type
    assert has_fast_bf16(text) == (AVX512 <= flags)


def test_a_processor_without_flags_has_no_mkl_cpu_type():
    text = "processor : 0\nFeatures : neon\n"
    assert find_mkl_cpu_type(text) is None and not has_fast_bf16(text)


def test_tune_cpu_changes_no_result_and_no_environment_variable():
    code = """
import os, torch
from icefall_kd.core.cpu import tune_cpu
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


def write_cgroups(root, groups, limits):
    """Write the files in which Linux reports the cgroups of a process, and limits."""
    for name, text in {"proc/self/cgroup": groups, **limits}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def eight_cpus(monkeypatch):
    """An affinity of 8 CPUs, without the environment variables of users."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_process_bound_to_one_cpu_counts_one():
    code = """
import os
from icefall_kd.core.cpu import count_cpus
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(count_cpus())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert done.stdout == b"1\n"


@pytest.mark.parametrize(
    "groups, limits, cpus",
    [
        ("0::/\n", {}, 8),
        ("0::/pod/task\n", {"pod/task/cpu.max": "max 100000\n"}, 8),
        ("0::/pod/task\n", {"pod/task/cpu.max": "350000 100000\n"}, 3),
        # A parent group has the limit; a container may see its own group as the root.
        ("0::/pod/task\n", {"pod/cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        (
            "4:memory:/a\n1:cpuacct,cpu:/a\n0::/\n",
            {"cpu/a/cpu.cfs_quota_us": "400000", "cpu/a/cpu.cfs_period_us": "100000"},
            4,
        ),
        (
            "1:cpu:/host/name\n",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            8,
        ),
    ],
)
def test_the_quota_of_a_container_limits_the_count(
    eight_cpus, tmp_path, groups, limits, cpus
):
    limits = {f"sys/fs/cgroup/{name}": text for name, text in limits.items()}
    write_cgroups(tmp_path, groups, limits)
    assert count_cpus(tmp_path) == cpus


@pytest.mark.parametrize(
    "variables, threads",
    [
        ({}, 8),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"MKL_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "many"}, 8),
        # torchrun sets the variable to 1 by default.
        ({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"}, 2),
        # local/env.sh sets both to all CPUs, local/train.sh to a share.
        ({"LOCAL_WORLD_SIZE": "4", "MKL_NUM_THREADS": "8"}, 2),
        ({"LOCAL_WORLD_SIZE": "4", "MKL_NUM_THREADS": "1"}, 1),
        ({"LOCAL_WORLD_SIZE": "16"}, 1),
    ],
)
def test_the_processes_of_torchrun_share_the_cpus(eight_cpus, variables, threads):
    eight_cpus.setattr("icefall_kd.core.cpu._cgroup_quotas", lambda root: [])
    for name, value in variables.items():
        eight_cpus.setenv(name, value)
    assert default_num_threads() == threads
    assert default_num_workers() == min(4, threads - 1)
    needed = {
        extract: [],
        pseudo_label: ["--shar-dir", "a", "--model-dir", "b", "--output", "c"],
    }
    for command, arguments in needed.items():
        assert command.get_parser().parse_args(arguments).num_threads == threads
    assert transcribe.get_parser().parse_args(["--model-dir", "a"]).threads == threads
    for given, cuts, jobs in (
        (None, 99, 1),
        (None, 5000, 2),
        (None, 10**6, 8),
        (3, 9, 3),
    ):
        assert make_shar.choose_num_jobs(given, cuts) == jobs
