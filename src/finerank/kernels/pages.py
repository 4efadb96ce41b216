"""Huge pages for large tables.

A step reads rows all over a table. In pages of 4 KB nearly each of them costs a walk through the page tables besides;
in pages of 2 MB the processor remembers where all pages are.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor

HUGE = 2 << 20  # bytes of a huge page, on x86 and ARM with pages of 4 KB
_MADV_HUGEPAGE = 14  # of Linux


def in_huge_pages(fresh: Tensor) -> Tensor:
    """The tensor itself, its memory advised to lie in huge pages: those that it fills alone.

    fresh  just made and not yet written to: pages that hold something stay as they are

    Does nothing but for a large tensor on the CPU of a Linux machine; whose memory it is does not change.
    """
    advise = _madvise()
    if advise is not None and fresh.device.type == "cpu":
        start = -fresh.data_ptr() % HUGE + fresh.data_ptr()
        length = (fresh.data_ptr() + fresh.nbytes - start) // HUGE * HUGE
        if length > 0:
            advise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(_MADV_HUGEPAGE))
    return fresh


@cache
def _madvise() -> Callable[..., Any] | None:
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
