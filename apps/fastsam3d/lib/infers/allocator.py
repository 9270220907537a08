"""The settings of the C library's memory allocator."""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD = -1  # of malloc.h
TRIM_BYTES = 2**20


def give_memory_back() -> None:
    """Let glibc return what was freed to the system, where it would keep more and more of it.

    By default its thresholds grow with the largest block that was freed, a volume's, say. What is
    kept between clicks then lies scattered between blocks that are free but stay with the process.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
