"""Set a process up for work on a CPU."""

import ctypes
import logging
import os
import platform
import re
from pathlib import Path
from typing import Optional

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8

# Values of MKL_DEBUG_CPU_TYPE, and the processor flags that the last one needs.
MKL_CPU_TYPES = {"AVX2": "5", "AVX-512": "7"}
AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


def tune_cpu() -> None:
    """Make the memory and the matrix products of this process fast; call it first.

    Nothing is changed in what is computed.  What was measured is in the two functions
    called.  Each applies only where it helps; a variable set by the user is kept.
    """
    keep_freed_memory()
    let_old_mkl_use_avx()


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


def return_freed_memory() -> bool:
    """Return freed memory to the system now; blocks of many sizes fragment it.

    Returns whether it was done (glibc only).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).malloc_trim(0))


def let_old_mkl_use_avx() -> bool:
    """Let the MKL of torch 1.13 use AVX-512 or AVX2 on processors not from Intel.

    It would use SSE there: matrix products of 40 GFLOP/s on a core that does 115 with
    AVX2 and 215 with AVX-512 (AMD EPYC).  Only a process that has not multiplied
    matrices yet is changed, and not the processes that it starts.  Returns whether it
    was done, now or by the user.
    """
    import torch

    old = "Math Kernel Library Version 2020" in torch.__config__.show()
    name = mkl_vectors(_cpuinfo()) if old else None
    if name is None:
        return False
    if "MKL_DEBUG_CPU_TYPE" not in os.environ:
        os.environ["MKL_DEBUG_CPU_TYPE"] = MKL_CPU_TYPES[name]
        torch.ones(2, 2).mm(torch.ones(2, 2))  # MKL reads the variable here, once
        del os.environ["MKL_DEBUG_CPU_TYPE"]
        logging.info("matrix products use %s", name)
    return True


def mkl_vectors(cpuinfo: str) -> Optional[str]:
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
