"""Freed memory: kept for the next network layer, returned to the system between stages."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(slots=True)
class SteadyHeap:
    """Returns freed memory whenever the process has grown noticeably since the first call; a callback of a stage.

    Passes over canvases of several shapes leave holes in which the next feature maps do not fit, so that the process
    grows though no more is in use. To return everything after every pass would cost a tenth of the time or more.

    Attributes:
        growth: How many times its first memory a process may have.
        first: Resident bytes at the first call.
    """

    growth: float = 1.03
    first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        """Called after each of ``total`` passes."""
        if self.first is None:
            self.first = _resident()
        elif _resident() > self.growth * self.first:
            return_freed_memory()


def _resident() -> int:
    """Bytes of this process that are in memory; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    return 0
