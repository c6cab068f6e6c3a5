"""Freed memory: kept for the next network layer, returned to the system between stages."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # numbers from glibc's malloc.h


def keep_freed_memory() -> None:
    """Tell glibc's malloc to reuse large blocks, and oneDNN to forget what it compiled for shapes of long ago.

    A network on the CPU allocates and frees its feature maps, tens of megabytes each, layer by layer. By default glibc
    maps each of them anew, and the system spends up to a third of the run on clearing pages. That part does nothing
    elsewhere than on Linux with glibc. Call it before the first network runs. Meant for programs, not for libraries: it
    changes the whole process.
    """
    # Crops come in many shapes, and oneDNN would keep code for each: more than 1 MB a shape for a small network.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
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
