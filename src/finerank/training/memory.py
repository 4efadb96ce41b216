"""Keep freed memory for the next step: on Linux with glibc, big blocks otherwise go back to the kernel at every step."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


@cache
def keep_freed_memory() -> bool:
    """Process-wide, once. Returns whether the C library took it (False elsewhere than glibc)."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))
