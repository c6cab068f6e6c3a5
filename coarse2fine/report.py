"""What a run did, for people and for scripts."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from canvas import Triple
from coarse2fine.io import atomic_write
from coarse2fine.promise.statement import Promised
from coarse2fine.system.device import peak_bytes_of_tensors
from coarse2fine.system.memory import peak_bytes
from coarse2fine.system.timing import Stage

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
class Timing:
    """Seconds by stage.

    Attributes:
        read, coarse, rois, assign, pack, fine, write: Of each stage; packing is no part of ``fine``, and the rehearsal
            of the end under a deadline is part of ``write``.
        total: Wall time; stages of a run over a store are summed over blocks, whoever did them, and may be more.
        measure: What measures took, once the result was written; no part of ``total``.
        account: What is counted and said of the result: labels, coverage, promise, doubts.
    """

    read: float = 0.0
    coarse: float = 0.0
    rois: float = 0.0
    assign: float = 0.0
    pack: float = 0.0
    fine: float = 0.0
    write: float = 0.0
    total: float = 0.0
    measure: float = 0.0
    account: float = 0.0

    @property
    def stages(self) -> dict[Stage, float]:
        """Seconds of each stage that is part of ``total``, in order; in files they add up to it."""
        return {stage: getattr(self, stage) for stage in Stage}

    @classmethod
    def of(cls, seconds: Mapping[str, float]) -> Self:
        """From a clock's seconds by name, where packing was booked inside of the fine stage, too."""
        booked = cls(**{field.name: seconds.get(field.name, 0.0) for field in fields(cls)})
        return replace(booked, fine=booked.fine - booked.pack)


@dataclass(frozen=True, slots=True)
class NetworkTime:
    """Seconds inside network passes, by stage; part of ``Timing``."""

    coarse: float = 0.0
    assign: float = 0.0
    fine: float = 0.0

    @classmethod
    def of(cls, seconds: Mapping[str, float]) -> Self:
        """From a clock's seconds by name."""
        return cls(**{field.name: seconds.get(Stage(field.name).passes, 0.0) for field in fields(cls)})

    @property
    def total(self) -> float:
        """Of all stages."""
        return self.coarse + self.assign + self.fine


@dataclass(frozen=True, slots=True)
class Boxes:
    """How many boxes there were.

    Attributes:
        children, parents, selected: Found, merged, and chosen.
        dropped: Parents of which neither they nor a child were chosen.
        grown: Added because a mask reached out of its box.
        cut: Faces of boxes that still cut through a mask.
    """

    children: int = 0
    parents: int = 0
    selected: int = 0
    dropped: int = 0
    grown: int = 0
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Canvases:
    """Inputs of the fine network.

    Attributes:
        count: How many.
        voxels: Of all of them.
        network_voxels: Of all passes of the fine network, those that measure ``norm: case`` included.
        fill: Share of ``voxels`` that crops fill, 0 to 1.
    """

    count: int = 0
    voxels: int = 0
    network_voxels: int = 0
    fill: float = 0.0


@dataclass(frozen=True, slots=True)
class Coverage:
    """What lies in processed boxes, as shares from 0 to 1.

    Attributes:
        volume: Of the working grid's voxels.
        heatmap_mass: Of the heatmap's sum.
    """

    volume: float = 1.0
    heatmap_mass: float = 1.0


@dataclass(frozen=True, slots=True)
class LeftBox:
    """A box that was not reached in time.

    Attributes:
        start, stop: Its corners in voxels of the file, (z, y, x).
        mass: Sum of the heatmap where it lies and no other box was segmented, in voxels of the working grid.
    """

    start: Triple
    stop: Triple
    mass: float


@dataclass(frozen=True, slots=True)
class DeadlineKept:
    """What a deadline made of a run.

    Attributes:
        asked_s: Seconds that the run was given; ``Timing.total`` is what it took.
        reserve_s: Of these kept free for what comes after the fine stage.
        order: By what boxes were put in order.
        boxes: How many there were, with those that others would have grown into.
        left: The boxes that were not reached.
        heatmap_mass: What of the heatmap's sum lies in them alone, as a share from 0 to 1.
        filled_with: What they got: ``coarse`` labels or ``background``.
    """

    asked_s: float
    reserve_s: float
    order: str
    boxes: int
    left: tuple[LeftBox, ...]
    heatmap_mass: float
    filled_with: str

    @property
    def warnings(self) -> tuple[str, ...]:
        """What users need to know."""
        if not self.left:
            return ()
        kept = "they keep the coarse labels"
        if self.filled_with == "background":
            kept = "they are background, as the labels of the coarse model are not those of the fine one"
        return (
            f"the deadline of {self.asked_s:.4g} s left no time for {len(self.left)} of {self.boxes} box(es), which "
            f"hold {100 * self.heatmap_mass:.3g} % of the heatmap's mass: {kept}",
        )


@dataclass(frozen=True, slots=True)
class RunReport:
    """One run over one volume.

    Attributes:
        case: Name of the volume.
        mode: ``accelerated``, ``two-stage`` or ``one-stage``.
        timing_s: Seconds by stage.
        network_s: Of these inside network passes.
        boxes: How many regions were found, chosen, grown.
        canvases: Inputs of the fine network.
        coverage: What lies in processed boxes.
        labels: Voxels of each foreground label in the result.
        peak_memory_mb: Peak resident memory of the process, and of the GPU where one is used.
        warnings: What the user should know.
        device: Where the networks ran.
        precision: What the fine network computed in on a CPU, ``fp32`` or ``bf16``; on a GPU as nnU-Net, ``mixed``.
        versions: Of this package and what it stands on.
        config: All settings.
        agent: ``name`` and ``kind`` of who chose the boxes; empty where nobody had to.
        promise: What the kit's calibration promises, and whether it covers this run; None without a kit, or where
            everything is looked at.
        deadline: What came of a deadline; None without one.
        measures: Of each label, by the names of a table's columns; empty unless asked for.
        objects: Of each connected object, likewise.
        in_mask: Voxels that a mask sets, where alone was looked; None without one.
    """

    case: str
    mode: str
    timing_s: Timing
    network_s: NetworkTime
    boxes: Boxes
    canvases: Canvases
    coverage: Coverage
    labels: dict[str, int]
    warnings: tuple[str, ...]
    device: str
    config: Mapping[str, Any]
    precision: str = "fp32"
    agent: dict[str, str] = field(default_factory=dict)
    promise: Promised | None = None
    deadline: DeadlineKept | None = None
    in_mask: int | None = None
    peak_memory_mb: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    measures: tuple[Mapping[str, Any], ...] = ()
    objects: tuple[Mapping[str, Any], ...] = ()

    @property
    def overhead_s(self) -> float:
        """Seconds outside of network passes and file reading and writing."""
        timing = self.timing_s
        return timing.total - self.network_s.total - timing.read - timing.write


NOTHING_FOUND = "nothing was found: every voxel is background"


def count_labels(labels: NDArray[np.unsignedinteger[Any]]) -> dict[str, int]:
    """Voxels of each foreground label.

    >>> count_labels(np.array([0, 3, 3, 1], np.uint8))
    {'1': 1, '3': 2}
    """
    counts = np.zeros(np.iinfo(labels.dtype).max + 1, np.int64)
    for slab in labels.reshape(-1, labels.shape[-1]) if labels.ndim < 3 else labels:
        # Counting only what is not background, slice by slice, as bincount converts to 64 bits.
        found = np.bincount(slab[slab != 0])
        counts[: len(found)] += found
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
    peak = {"resident": peak_bytes() / 1e6}
    tensors = peak_bytes_of_tensors(device)
    return peak if tensors is None else peak | {"gpu": tensors / 1e6}


def write_report(reports: list[RunReport], path: Path) -> None:
    """Write one run as a JSON object, several as a list; atomically."""
    documents = [asdict(report) for report in reports]
    with atomic_write(path) as temporary:
        content = documents[0] if len(documents) == 1 else documents
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
