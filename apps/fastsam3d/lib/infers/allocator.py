"""Settings of the C library's memory allocator."""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD = -1
"""M_TRIM_THRESHOLD: the number of this setting in glibc's malloc.h."""

TRIM_BYTES = 2**20
"""TRIM_BYTES: more free memory than this at the top of the heap goes back to the system."""


def give_memory_back() -> None:
    """Make glibc return freed memory to the system, so that a long-running server does not grow.

    By default glibc raises its thresholds to the largest freed block, such as a volume. Long-lived
    objects then lie scattered between free blocks that stay with the process. With another C
    library this does nothing.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
