"""What a training asks of memory: that freed blocks are kept for the next step, and that the collector leaves it in peace.

On Linux with glibc, big blocks otherwise go back to the kernel at every step.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def settled_objects() -> Iterator[None]:
    """Python's collector looks past everything that exists when the block begins: modules, model, data set.

    They outlive the training, and to look through them again and again takes a twentieth of a small step.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
