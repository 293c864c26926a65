"""Set a process up for work on a CPU; how many CPUs there are for it.

``python -m icefall_kd.core.cpu`` prints the number of CPUs, for scripts.
"""

import ctypes
import logging
import math
import os
import platform
import re
from pathlib import Path
from typing import Optional

from icefall_kd.core.files import Pathlike

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8

# Values of MKL_DEBUG_CPU_TYPE, and the processor flags that the last one needs.
MKL_CPU_TYPES = {"AVX2": "5", "AVX-512": "7"}
AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

MAX_WORKERS = 4  # processes that load the batches of one training process


def count_cpus(root: Pathlike = "/") -> int:
    """Return the CPUs that this process may use: its affinity, within cgroup quotas.

    Args:
      root: folder with ``proc`` and ``sys``.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, min(count, int(min([count, *_cgroup_quotas(Path(root))]))))


def default_num_threads() -> int:
    """Return the CPU threads of this process: its share of :func:`count_cpus`.

    The processes that torchrun starts on a machine share it.  OMP_NUM_THREADS and
    MKL_NUM_THREADS limit it; among several processes only the latter, since torchrun
    sets the former to 1 wherever it is not set.
    """
    processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
    share = max(1, count_cpus() // processes)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    for name in names if processes == 1 else names[1:]:
        given = os.environ.get(name, "").partition(",")[0]
        if given.isdecimal() and int(given) > 0:
            return int(given) if processes == 1 else min(int(given), share)
    return share


def default_num_workers() -> int:
    """Return the processes that load batches beside this one; 0 on a single CPU."""
    return min(MAX_WORKERS, default_num_threads() - 1)


def _cgroup_quotas(root: Path) -> list[float]:
    """Return the CPUs that each cgroup of this process, or one above it, may use."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    quotas = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        mounted = root / "sys/fs/cgroup"
        if "cpu" in controllers.split(","):  # version 1
            mounted = mounted / "cpu"
        elif controllers:
            continue
        # A container may see its own group as the root, or by the path of its host.
        inner = mounted / group.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder == mounted.parent:
                break
            quotas.append(_quota(folder))
    return quotas


def _quota(folder: Path) -> float:
    """Return the CPUs that a cgroup may use, infinity without a limit."""
    try:
        if (folder / "cpu.max").is_file():  # version 2: "150000 100000" or "max ..."
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except (OSError, ValueError):
        return math.inf


def tune_cpu() -> None:
    """Make the work of this process on a CPU fast; call it first.

    Torch gets :func:`default_num_threads`.  No result of a computation changes.
    What was measured is in the two other functions called.  Each applies only where it
    helps; a variable set by the user is kept.
    """
    import torch

    keep_freed_memory()
    enable_mkl_avx()
    torch.set_num_threads(default_num_threads())


def keep_freed_memory(one_arena: bool = False) -> bool:
    """Let freed memory be used again instead of being returned to the system.

    By default glibc maps every large tensor anew and the system clears it page by
    page: that costs 1.6 ns an element, more than most operations on it.  Returns
    whether it was done (glibc only).

    Args:
      one_arena: for threads other than the main one too.  Theirs are small memories of
        their own, which give back whatever is larger than 64 MB.  CTranslate2 computes
        in such a thread: encoding 28 s with Whisper base took 29 ms of CPU for a second
        of audio without this function, 15 with it (int8, AMD EPYC).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    if one_arena:
        libc.mallopt(M_ARENA_MAX, 1)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1))


def release_freed_memory() -> bool:
    """Return freed memory to the system now; blocks of many sizes fragment it.

    Returns whether it was done (glibc only).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).malloc_trim(0))


def enable_mkl_avx() -> bool:
    """Let the MKL of torch 1.13 use AVX-512 or AVX2 on processors not from Intel.

    It would use SSE there: matrix products of 40 GFLOP/s on a core that does 115 with
    AVX2 and 215 with AVX-512 (AMD EPYC).  Only a process that has not multiplied
    matrices yet is changed, and not the processes that it starts.  Returns whether it
    was done, now or by the user.
    """
    import torch

    old = "Math Kernel Library Version 2020" in torch.__config__.show()
    name = find_mkl_vectors(_cpuinfo()) if old else None
    if name is None:
        return False
    if "MKL_DEBUG_CPU_TYPE" not in os.environ:
        os.environ["MKL_DEBUG_CPU_TYPE"] = MKL_CPU_TYPES[name]
        torch.ones(2, 2).mm(torch.ones(2, 2))  # MKL reads the variable here, once
        del os.environ["MKL_DEBUG_CPU_TYPE"]
        logging.info("matrix products use %s", name)
    return True


def find_mkl_vectors(cpuinfo: str) -> Optional[str]:
    """Return the key of `MKL_CPU_TYPES` that a processor can do and MKL withholds.

    Args:
      cpuinfo: text of ``/proc/cpuinfo``.
    """
    line = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    if line is None or "GenuineIntel" in cpuinfo:
        return None
    flags = set(line[1].split())
    if AVX512 <= flags:
        return "AVX-512"
    return "AVX2" if {"avx2", "fma"} <= flags else None


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    print(count_cpus())
