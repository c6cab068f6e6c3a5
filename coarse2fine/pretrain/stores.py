"""Volumes in stores, of which nothing is read but their statistics, once, and the crops."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.errors import VolumeError
from coarse2fine.io import Case, Scales, atomic_write, open_store
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.statistics import Scan, join_scans, scan_part
from coarse2fine.preprocessing.working_grid import WorkingView, view_volume
from coarse2fine.system.device import to_host

_MOST = 256  # voxels along each edge of what is in memory at once while a store is scanned
_IDENTITY = (
    "array",
    "axes",
    "channel",
    "shape",
    "dtype",
    "spacing",
    "unit",
    "fingerprint",
)  # of a store, wherever it lies

Said = Mapping[str, Any]
"""What users say of all stores, as ``open_store`` takes it: array, spacing, unit, axes, channel."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredVolume:
    """A volume as inference sees it, computed where it is read.

    Attributes:
        view: Of the finest scale.
    """

    view: WorkingView

    def __len__(self) -> int:
        return len(self.view.channels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, and voxels of the working grid (z, y, x)."""
        return (len(self), *self.view.shape)

    def __getitem__(self, key: tuple[slice, slice, slice, slice]) -> NDArray[np.float32]:
        """All channels of a box."""
        _, *inside = key
        return to_host(self.view.read(Box(triple(one.start for one in inside), triple(one.stop for one in inside))))


def open_stored(case: Case, model: Model, said: Said, scanned: Path) -> StoredVolume:
    """A volume in a store.

    Args:
        case: Its only file is the store.
        model: Says how it is seen.
        said: See ``Said``.
        scanned: File for its statistics, which are read if it is there.

    Raises:
        VolumeError: If it cannot be read, or the model does not take it.
    """
    scales = open_store(str(case.files[0]), **said)
    volume = scales.levels[0]
    if len(volume.channels) != model.channels:
        raise VolumeError(
            f"{case.files[0]} has {len(volume.channels)} channel(s), the plans {model.channels}",
            "Name one of them (--channel), or use plans of as many channels.",
        )
    if not scanned.exists():
        scan = _scan(scales)
        with atomic_write(scanned) as temporary:
            temporary.write_text(json.dumps(scan.to_dict()), encoding="utf-8")
    scan = Scan.from_dict(json.loads(scanned.read_text(encoding="utf-8")))
    return StoredVolume(view_volume(volume, model, scan=scan))


def about_store(case: Case, said: Said) -> dict[str, object]:
    """What tells a store from others, without reading more than its metadata; errors as of ``open_store``."""
    identity = open_store(str(case.files[0]), **said).identity
    return {key: identity[key] for key in _IDENTITY}


def _scan(scales: Scales) -> Scan:
    volume = scales.levels[0]
    return join_scans(
        (
            scan_part([np.asarray(channel[box.slices]) for channel in volume.channels], box.start, (0, 1, 2))
            for box in _boxes(volume.grid.shape, scales.chunks)
        ),
        volume.grid.shape,
    )


def _boxes(shape: Triple, chunks: Triple) -> Iterator[Box]:
    """Boxes that cover a volume, each of whole chunks."""
    edges = [max(chunk, _MOST // chunk * chunk) for chunk in chunks]
    for corner in np.ndindex(*(-(-size // edge) for size, edge in zip(shape, edges, strict=True))):
        start = [at * edge for at, edge in zip(corner, edges, strict=True)]
        stop = [min(first + edge, size) for first, edge, size in zip(start, edges, shape, strict=True)]
        yield Box(triple(start), triple(stop))
