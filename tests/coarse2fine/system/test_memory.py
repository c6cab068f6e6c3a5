"""Freed memory, measured in a process of its own, as settings of malloc hold for the rest of a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
START = """
import sys
from pathlib import Path
import numpy as np
import torch
from coarse2fine.system.memory import SteadyHeap, keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
"""
GROWTH = """
keep_freed_memory()
told = []
steady = SteadyHeap(lambda *step: told.append(step), growth=float(sys.argv[1]))
steady("fine", 1, 3)
maps = [np.ones(1 << 20) for _ in range(50)]
kept = maps[::10]
del maps
before = resident()
steady("fine", int(sys.argv[2]), 3)
assert told == [("fine", 1, 3), ("fine", int(sys.argv[2]), 3)]
assert all((one == 1).all() for one in kept)
print(before - resident())
"""
HOLES = """
steady, tensor_before = map(int, sys.argv[1:])
used = torch.ones(1) if tensor_before else None
keep_freed_memory(steady=bool(steady))
maps, small = [], []
for _ in range(10):  # large ones with small ones in between, as feature maps have
    maps.append(torch.ones(10 << 20))
    small.append(np.ones(1 << 17))
pages = Path("/proc/self/smaps_rollup").read_text().split("AnonHugePages:")[1].split()[0]
before = resident()
del maps
print(before - resident(), int(pages) / 1e3)
"""


@pytest.mark.alone
@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="this system has no huge pages"
)
@pytest.mark.parametrize(
    ("steady", "tensor_before", "returned"), [(True, 0, True), (False, 0, False), (True, 1, False)]
)
def test_keep_freed_memory__steady__feature_maps_leave_no_holes(
    steady: bool, tensor_before: int, returned: bool
) -> None:
    """Ten maps of 42 MB leave the process at once and lay in huge pages; without them, all is kept for the next."""
    command = [sys.executable, "-c", START + HOLES, str(int(steady)), str(tensor_before)]
    own = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}  # other tests set it
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=own)
    freed, huge = map(float, done.stdout.split())
    assert (freed > 400 and huge > 1) if returned else freed < 1


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="malloc is tuned on Linux only")
@pytest.mark.parametrize(
    ("growth", "step", "returned"), [(1.05, 2, True), (1000.0, 2, False), (float("inf"), 2, False), (1000.0, 0, True)]
)
def test_steady_heap__process_has_grown_or_stage_begins__returns_what_is_free(
    growth: float, step: int, returned: bool
) -> None:
    """Of 50 arrays of 8.4 MB, 45 are freed: their memory leaves the process, holes included, or stays if allowed."""
    command = [sys.executable, "-c", START + GROWTH, str(growth), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    least, most = (300.0, 400.0) if returned else (-1.0, 1.0)
    assert least < float(done.stdout) < most
