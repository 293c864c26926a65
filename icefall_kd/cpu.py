"""Set a process up for training on a CPU."""

import ctypes
import logging
import os
import platform
from pathlib import Path

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def tune_cpu() -> None:
    """Make the memory and the matrix products of this process fast; call it first.

    Nothing is changed in what is computed.  What was measured is in the two functions
    called.  Each applies only where it helps; a variable set by the user is kept.
    """
    keep_freed_memory()
    let_old_mkl_use_avx2()


def keep_freed_memory() -> bool:
    """Let freed memory be used again instead of being returned to the system.

    By default glibc maps every large tensor anew and the system clears it page by
    page: that costs 1.6 ns an element, more than most operations on it.  Returns
    whether it was done (glibc only).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1))


def let_old_mkl_use_avx2() -> bool:
    """Let the MKL of torch 1.13 use AVX2 on processors that are not Intel's.

    It would use SSE there, and matrix products would take three times as long.  Only
    a process that has not multiplied matrices yet is changed, and not the processes
    that it starts.  Returns whether it was done, now or by the user.
    """
    import torch

    old = "Math Kernel Library Version 2020" in torch.__config__.show()
    if not old or not _has_avx2_but_is_not_intel():
        return False
    if "MKL_DEBUG_CPU_TYPE" not in os.environ:
        os.environ["MKL_DEBUG_CPU_TYPE"] = "5"
        torch.ones(2, 2).mm(torch.ones(2, 2))  # MKL reads the variable here, once
        del os.environ["MKL_DEBUG_CPU_TYPE"]
        logging.info("matrix products use AVX2")
    return True


def _has_avx2_but_is_not_intel() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return " avx2 " in text and "GenuineIntel" not in text
