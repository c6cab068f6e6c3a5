"""Freed memory, measured in a process of its own, as settings of malloc hold for the rest of a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from coarse2fine.allocator import SteadyHeap, keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

keep_freed_memory()
steady = SteadyHeap(growth=float(sys.argv[1]))
steady(1, 3)
maps = [np.ones(1 << 20) for _ in range(50)]
kept = maps[::10]
del maps
before = resident()
steady(2, 3)
assert all((one == 1).all() for one in kept)
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is tuned on Linux only")
@pytest.mark.parametrize(("growth", "least", "most"), [(1.05, 300.0, 400.0), (1000.0, -1.0, 1.0)])
def test_steady_heap__process_has_grown__returns_what_is_free(growth: float, least: float, most: float) -> None:
    """Of 50 arrays of 8.4 MB, 45 are freed: their memory leaves the process, holes included, or stays if allowed."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(growth)], capture_output=True, text=True, check=True)
    assert least < float(done.stdout) < most
