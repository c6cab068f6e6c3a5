"""Freed memory: kept for the next network layer, returned to the system between stages."""

from __future__ import annotations

import contextlib
import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # numbers from glibc's malloc.h


def keep_freed_memory() -> None:
    """Tell glibc's malloc to reuse large blocks.

    A network on the CPU allocates and frees its feature maps, tens of megabytes each, layer by layer. By default glibc
    maps each of them anew, and the system spends up to a third of the run on clearing pages. Does nothing elsewhere
    than on Linux with glibc. Meant for programs, not for libraries: it changes the whole process.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library has no mallopt
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Hand freed memory back to the system, so that one stage's peak does not add to the next one's."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
