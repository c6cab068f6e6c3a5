"""What a run did, for people and for scripts."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarse2fine.io import atomic_write

PACKAGES = (
    "coarse2fine",
    "torch",
    "nnunetv2",
    "numpy",
    "scipy",
    "scikit-image",
    "SimpleITK",
    "connected-components-3d",
)


@dataclass(frozen=True, slots=True)
class RunReport:
    """One run over one volume.

    Attributes:
        case: Name of the volume.
        mode: ``accelerated``, ``two-stage`` or ``one-stage``.
        timing_s: Seconds by stage: read, coarse, rois, assign, pack, fine, write, total.
        network_s: Seconds inside network passes, by stage; part of ``timing_s``.
        boxes: Number of children, parents and selected boxes, of parents dropped with all their children, of grown
            boxes, and of faces that still cut through a mask.
        canvases: Number of network inputs of the fine stage, voxels of all of them, share of these that crops fill, and
            voxels of all network passes, those that measure ``norm: case`` included.
        coverage: Share of the volume and of the heatmap's mass in processed boxes, 0 to 1.
        labels: Voxels of each foreground label in the result.
        peak_memory_mb: Peak resident memory of the process, and of the GPU where one is used.
        warnings: What the user should know.
        device: Where the networks ran.
        versions: Of this package and what it stands on.
        config: All settings.
        agent: ``name`` and ``kind`` of who chose the boxes; empty where nobody had to.
    """

    case: str
    mode: str
    timing_s: dict[str, float]
    network_s: dict[str, float]
    boxes: dict[str, int]
    canvases: dict[str, float]
    coverage: dict[str, float]
    labels: dict[str, int]
    warnings: tuple[str, ...]
    device: str
    config: Mapping[str, Any]
    agent: dict[str, str] = field(default_factory=dict)
    peak_memory_mb: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def overhead_s(self) -> float:
        """Seconds outside of network passes and file reading and writing."""
        files = self.timing_s.get("read", 0.0) + self.timing_s.get("write", 0.0)
        return self.timing_s["total"] - sum(self.network_s.values()) - files


NOTHING_FOUND = "nothing was found: every voxel is background"


def count_labels(labels: NDArray[np.unsignedinteger[Any]]) -> dict[str, int]:
    """Voxels of each foreground label.

    >>> count_labels(np.array([0, 3, 3, 1], np.uint8))
    {'1': 1, '3': 2}
    """
    # Counting only what is not background keeps bincount from converting the whole volume to 64 bits.
    counts = np.bincount(labels[labels != 0])
    return {str(label): int(counts[label]) for label in np.flatnonzero(counts)}


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a source tree
            found[name] = "not installed"
    return found


def peak_memory_mb(device: torch.device) -> dict[str, float]:
    """Peak resident memory of this process since its start, and of the GPU."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes on macOS, KiB on Linux
    peak = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}
    if device.type == "cuda":
        peak["gpu"] = torch.cuda.max_memory_allocated(device) / 1e6
    return peak


def write_report(reports: list[RunReport], path: Path) -> None:
    """Write one run as a JSON object, several as a list; atomically."""
    documents = [asdict(report) for report in reports]
    with atomic_write(path) as temporary:
        content = documents[0] if len(documents) == 1 else documents
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
