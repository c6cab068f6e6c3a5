"""Freed memory: kept for the next network layer, returned to the system between stages.

PyTorch leaves this to glibc's malloc, which by default gives every large block back at once, so that the next layer's
is cleared anew (speed), and keeps small ones that nobody needs any more (memory).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from dataclasses import dataclass
from math import inf
from pathlib import Path

from coarse2fine.system.timing import Progress, silent

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # numbers from glibc's malloc.h
MAPPED = 8 << 20
"""Bytes of the smallest blocks that ``keep_freed_memory(steady=True)`` keeps off the heap."""


def keep_freed_memory(*, steady: bool = False) -> None:
    """Tell glibc's malloc to reuse large blocks, and oneDNN to forget what it compiled for shapes of long ago.

    A network on the CPU allocates and frees its feature maps, tens of megabytes each, layer by layer. By default glibc
    maps each of them anew, and the system spends up to a third of the run on clearing pages. That part does nothing
    elsewhere than on Linux with glibc. Call it before the first network runs. Meant for programs, not for libraries: it
    changes the whole process.

    Args:
        steady: For processes that work on and on, whose heap would end up with holes in which the next feature map does
            not fit: blocks of 8 MiB and more are mapped after all, in huge pages, which are cleared much faster. Call
            it before the first tensor; where PyTorch gets no huge pages, this makes no difference.
    """
    # Crops come in many shapes, and oneDNN would keep code for each: more than 1 MB a shape for a small network.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    if sys.platform != "linux":
        return
    mapped = steady and _uses_huge_pages()
    with contextlib.suppress(OSError, AttributeError):  # another C library has no mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, MAPPED)
        libc.mallopt(M_MMAP_MAX, 2**16 if mapped else 0)


def is_memory_full(error: Exception, *, on_gpu: bool = False) -> bool:
    """Whether an error means that memory is full.

    Args:
        error: Any.
        on_gpu: Whether only a GPU's counts.
    """
    import torch  # nobody waits for it where something has failed

    # PyTorch has no class of its own for that on the CPU and on Apple's GPUs.
    gpu = isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in str(error)
    return gpu or (not on_gpu and (isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)))


def _uses_huge_pages() -> bool:
    """Make PyTorch ask for huge pages, and tell whether it gets them."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's, which looks at it before its first tensor only
    import torch  # workers of a cluster look at tasks before they need it

    with contextlib.suppress(OSError):
        offered = "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        # What is to be huge begins with a page.
        return offered and torch.empty(8 << 20, dtype=torch.uint8).data_ptr() % mmap.PAGESIZE == 0
    return False


def return_freed_memory() -> None:
    """Hand freed memory back to the system, so that one stage's peak does not add to the next one's."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    import psutil  # a command that only tells its options does without it

    return int(psutil.virtual_memory().available)


def total_bytes() -> int:
    """Memory of the machine."""
    import psutil

    return int(psutil.virtual_memory().total)


def peak_bytes() -> int:
    """Most memory that this process has had at once since its start."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource  # there is none on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(slots=True)
class SteadyHeap:
    """Progress of a run that returns freed memory where a stage begins, so that peaks do not add up.

    For processes that work on and on, also whenever the process has grown noticeably since the first pass of the fine
    network: what is too small for a mapping of its own leaves holes on the heap, pass after pass, and makes the process
    grow though no more is in use.

    Attributes:
        told: Who is told of the progress.
        growth: How many times its first memory a process may have.
        first: Resident bytes after the fine network's first pass.
    """

    told: Progress = silent
    growth: float = inf
    first: int = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Called when a stage begins, with ``done`` 0, and after each of its steps."""
        if not done:
            return_freed_memory()
        elif stage == "fine" and self.growth < inf:
            if done == 1:
                self.first = _resident()
            elif _resident() > self.growth * self.first:
                return_freed_memory()
        self.told(stage, done, total)


def _resident() -> int:
    """Bytes of this process that are in memory; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    return 0
