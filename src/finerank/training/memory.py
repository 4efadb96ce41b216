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
def keep_freed_memory() -> None:
    """Process-wide, once; nothing elsewhere than with glibc, which is only slower."""
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    if mallopt(_MMAP_THRESHOLD, 1 << 30):
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


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
