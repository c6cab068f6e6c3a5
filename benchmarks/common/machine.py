"""On what a benchmark runs: memory, threads and versions; shared by the scripts of this folder."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from coarse2fine.report import versions

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "nnUNet_def_n_proc")


class PeakMemory:
    """Peak resident memory of this process since the last reset; only Linux can tell."""

    def __init__(self, process: Path = Path("/proc/self")) -> None:
        self._clear, self._status = process / "clear_refs", process / "status"

    def reset(self) -> None:
        """Hand freed memory back to the system and begin to measure anew."""
        gc.collect()
        with contextlib.suppress(OSError, AttributeError, TypeError):  # only glibc has malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
        if os.access(self._clear, os.W_OK):
            self._clear.write_text("5")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def read_mb(self) -> float | None:
        """The peak, or None where it cannot be reset."""
        peak = first_value(self._status, "VmHWM") if os.access(self._clear, os.W_OK) else ""
        return int(peak.split()[0]) * 1024 / 1e6 if peak else None

    @staticmethod
    def read_gpu_mb() -> float | None:
        """The peak of what tensors took on the GPU; None without one."""
        return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None


def forget() -> None:
    """Drop what coarse2fine keeps from one run to the next; nnU-Net's predictor clears its own cache."""
    modules = [module for name, module in sys.modules.items() if name.startswith("coarse2fine.")]
    for value in [value for module in modules for value in vars(module).values()]:
        if hasattr(value, "cache_clear"):
            value.cache_clear()


def use_threads(count: int | None) -> None:
    """Let every library use so many threads; None leaves it to each.

    Libraries size their thread pools when they are loaded, so the program starts itself again if it has to.
    """
    wanted = dict.fromkeys(THREAD_VARIABLES, str(count))
    if count and not wanted.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | wanted)


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """On what this is measured, ready for JSON."""
    is_gpu = device is not None and device.type == "cuda"
    processor = first_value(Path("/proc/cpuinfo"), "model name") or "unknown CPU"
    return {
        "machine": f"{platform.system()} {platform.machine()}, {processor}",
        "device": torch.cuda.get_device_name(device) if is_gpu else (device.type if device else "cpu"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "thread_variables": {name: os.environ.get(name) for name in THREAD_VARIABLES},
        "load_average": os.getloadavg(),
        "versions": versions(),
    }


@contextlib.contextmanager
def work_folder(kept: Path | None) -> Iterator[Path]:
    """A folder for what may be used again, made if it is not there; None for one that is gone afterwards."""
    with contextlib.ExitStack() as stack:
        folder = kept or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def first_value(file: Path, key: str) -> str:
    """The first value of a key in a file of ``/proc``; empty if there is none."""
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def relative(path: Path) -> str:
    """A path as seen from the repository's root; results hold no others."""
    return Path(os.path.relpath(path, ROOT)).as_posix()
