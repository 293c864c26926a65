"""Count the CPUs of a process, and tune its memory and its matrix products.

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

# Values of MKL_DEBUG_CPU_TYPE, and the processor flags of AVX-512.
MKL_CPU_TYPES = {"AVX2": "5", "AVX-512": "7"}
AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

MAX_WORKERS = 4  # worker processes of the data loader


def count_cpus(root: Pathlike = "/") -> int:
    """Return the number of CPUs of this process, by its affinity and cgroup quotas.

    Args:
      root: folder that contains ``proc`` and ``sys``; tests give another one.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, min(count, int(min([count, *_cgroup_quotas(Path(root))]))))


def default_num_threads() -> int:
    """Return the number of CPU threads that this process may use.

    The processes of torchrun share the CPUs of a machine.  OMP_NUM_THREADS or
    MKL_NUM_THREADS sets the number.  With several processes only MKL_NUM_THREADS counts
    and can only reduce a process's share, because torchrun sets OMP_NUM_THREADS to 1.
    """
    processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
    share = max(1, count_cpus() // processes)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    for name in names if processes == 1 else names[1:]:
        value = os.environ.get(name, "").partition(",")[0]
        if value.isdecimal() and int(value) > 0:
            return int(value) if processes == 1 else min(int(value), share)
    return share


def default_num_workers() -> int:
    """Return the number of worker processes of the data loader; 0 on a single CPU."""
    return min(MAX_WORKERS, default_num_threads() - 1)


def _cgroup_quotas(root: Path) -> list[float]:
    """Return the CPU quotas of the cgroups of this process and of their parents."""
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
        # A container sees its own group as the root, or by its path on the host.
        inner = mounted / group.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder == mounted.parent:
                break
            quotas.append(_read_quota(folder))
    return quotas


def _read_quota(folder: Path) -> float:
    """Return the CPU quota of a cgroup, infinity without a limit."""
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
    """Speed up computation on a CPU; call it before any matrix product.

    It sets the number of torch's threads, and leaves environment variables unchanged.
    """
    import torch

    keep_freed_memory()
    enable_mkl_avx()
    torch.set_num_threads(default_num_threads())


def keep_freed_memory(one_arena: bool = False) -> None:
    """Make glibc, if it is the C library, reuse freed memory.

    By default glibc returns the memory of each large tensor to the system, and the
    system clears the pages of the next tensor.  That takes 1.6 ns for each element,
    longer than most operations.

    Args:
      one_arena: whether other threads use the main thread's arena.  Their separate
        arenas return blocks above 64 MB.  CTranslate2 computes in such a thread:
        Whisper base needs 29 ms of CPU for each second of audio, and 15 ms with this
        function (int8, utterances of 28 s, AMD EPYC).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    if one_arena:
        libc.mallopt(M_ARENA_MAX, 1)
    if libc.mallopt(M_MMAP_MAX, 0):
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def release_freed_memory() -> None:
    """Make glibc, if it is the C library, return freed memory to the system.

    After :func:`keep_freed_memory`, blocks of many sizes fragment the memory.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def enable_mkl_avx() -> None:
    """Make the MKL of torch 1.13 use AVX-512 or AVX2 on processors not from Intel.

    MKL uses SSE there by default: 40 GFLOP/s of matrix products on a core that reaches
    115 with AVX2 and 215 with AVX-512 (AMD EPYC).  The call must come before the first
    matrix product.  It does not affect child processes, and does nothing if
    MKL_DEBUG_CPU_TYPE is set.
    """
    import torch

    is_old = "Math Kernel Library Version 2020" in torch.__config__.show()
    name = find_mkl_cpu_type(_read_cpuinfo()) if is_old else None
    if name is None or "MKL_DEBUG_CPU_TYPE" in os.environ:
        return
    os.environ["MKL_DEBUG_CPU_TYPE"] = MKL_CPU_TYPES[name]
    torch.ones(2, 2).mm(torch.ones(2, 2))  # MKL reads the variable once, here
    del os.environ["MKL_DEBUG_CPU_TYPE"]
    logging.info("matrix products use %s", name)


def find_mkl_cpu_type(cpuinfo: str) -> Optional[str]:
    """Return the best key of `MKL_CPU_TYPES` for a processor.

    None is a processor of Intel, or one without AVX2.

    Args:
      cpuinfo: text of ``/proc/cpuinfo``.
    """
    flags = _read_flags(cpuinfo)
    if not flags or "GenuineIntel" in cpuinfo:
        return None
    if AVX512 <= flags:
        return "AVX-512"
    return "AVX2" if {"avx2", "fma"} <= flags else None


def has_fast_bf16(cpuinfo: Optional[str] = None) -> bool:
    """Return whether autocast in bfloat16 is faster than float32 on this processor.

    oneDNN has bfloat16 operators for AVX-512 only.  With AVX2 a training step takes
    15 times as long as in float32 (AMD EPYC).

    Args:
      cpuinfo: text of ``/proc/cpuinfo``; None reads it.
    """
    return AVX512 <= _read_flags(_read_cpuinfo() if cpuinfo is None else cpuinfo)


def _read_flags(cpuinfo: str) -> set[str]:
    line = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return set(line[1].split()) if line else set()


def _read_cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    print(count_cpus())
