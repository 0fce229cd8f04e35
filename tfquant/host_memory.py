"""Memory use of the process.

Memory that TensorFlow frees on a CPU is retained for the next step instead of returned to the
system.
"""

from __future__ import annotations

import ctypes
import os
import platform

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_TOP_PAD = 64 << 20
_CHOSEN = (
    "MALLOC_MMAP_MAX_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_THRESHOLD_",
)


def keep_freed_memory() -> bool:
    """Configure glibc to retain large freed blocks. Call it before TensorFlow computes anything;
    repeated calls have no effect.

    TensorFlow allocates the tensors of a CPU afresh in every step. glibc asks the system for each
    large one and gives it back, so that every page of it is cleared and mapped again, step after
    step: about a fifth of a training step of BERT. The process then stays as large as it was at its
    largest.

    Returns:
      Whether it did so: not where another C library is in use, nor where the environment already
        says how malloc is to behave
      (one of glibc's MALLOC_... variables, or glibc.malloc in GLIBC_TUNABLES).
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _CHOSEN):
        return False
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # One arena: the others cannot grow beyond 64 MiB and would map large blocks all the same. -1:
    # never trimmed.
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD), (_M_ARENA_MAX, 1))
    return all([mallopt(name, value) == 1 for name, value in wanted])


def check_fits(size: int, what: str) -> None:
    """Raise ValueError if an allocation exceeds half of the memory of the machine.

    Args:
      size: bytes.
      what: needs them, for the message.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory // 2:
        raise ValueError(
            f"{what} need {size / 2**30:,.1f} GiB, more than half of the memory"
            f" ({memory / 2**30:,.1f} GiB)"
        )
