"""Volumes that are divided into many cells: read by region from memory, or in stores that zarr-python wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import zarr
from torch import nn

from canvas import Box, Triple
from coarse2fine.config.reader import load_config
from coarse2fine.io import Grid, LazyArray, Volume
from coarse2fine.large.cells import UNSETTLED, CellResult, VolumeNorm, look_at_cell, open_volume, segment_cells
from coarse2fine.large.lattice import Lattice
from coarse2fine.large.norm import settle
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.pipeline import Pipeline
from coarse2fine.preprocessing.statistics import Scan, join_scans, scan_part
from coarse2fine.system.timing import Run

SPACING = (2.0, 1.0, 1.0)
TWO = Lattice(((0, 8), (0, 32), (0, 32, 64)))
"""Two cells side by side."""


def bar(
    low: int, high: int, values: Sequence[tuple[int, int]] = ((0, 200),), shape: Triple = (8, 32, 64)
) -> np.ndarray:
    """A volume with one object from x = ``low`` to ``high``; its intensity changes where ``values`` say."""
    image = np.zeros(shape, np.uint8)
    for start, value in values:
        image[2:6, 12:18, max(low, start) : high] = value
    image[image == 0] = 1  # nothing is cropped
    return image


class Bright(nn.Module):
    """A network that calls a voxel foreground if its normalised intensity is above a level, with certainty."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level
        self.register_buffer("seen_above", torch.tensor(level))  # so that models differ in what they are identified by

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        distance = (20 * (batch[:, :1] - self.level)).clamp(-500, 500)  # sums of tiles fit into half precision
        return torch.cat([-distance, distance], 1)


def pipeline_of(models: tuple[Path, Path], overrides: Sequence[str] = ()) -> Pipeline:
    """The two models, with settings under which many regions are found in what the untrained ones say."""
    named = [f"coarse.model={models[0]}", f"fine.model={models[1]}", "fine.mirroring=false", "rois.threshold=0.55"]
    return Pipeline.from_config(load_config(None, [*named, *overrides]))


def bright_models(folder: Path, *, coarse: float, fine: float) -> tuple[Model, Model]:
    """Networks that are sure of what they see: each finds what is brighter than a level.

    Args:
        folder: A model folder, for all but the networks; it does not normalise.
        coarse: Intensity above which the coarse network sees something.
        fine: Likewise the fine network.
    """
    plain = load_model(folder)
    return replace(plain, networks=(Bright(coarse),)), replace(plain, networks=(Bright(fine),))


def bright_pipeline(folder: Path, overrides: Sequence[str] = (), *, coarse: float, fine: float) -> Pipeline:
    """A pipeline with such networks; arguments as of ``bright_models``, and settings."""
    config = load_config(None, ["fine.mirroring=false", *overrides])
    return Pipeline(config, *bright_models(folder, coarse=coarse, fine=fine))


def lazy_volume(
    image: np.ndarray, spacing: Sequence[float] = SPACING, reads: list[Box] | None = None
) -> Volume[LazyArray]:
    """An image that is read by region; notes the regions."""

    def load(box: Box) -> np.ndarray:
        if reads is not None:
            reads.append(box)
        return image[box.slices].copy()

    z, y, x = spacing
    return Volume((LazyArray(image.shape, image.dtype, load),), Grid(image.shape, (z, y, x)), "lazy")


def scan_of(image: np.ndarray, axes: Sequence[int] = (0, 1, 2)) -> Scan:
    """Statistics of an image of one channel."""
    return join_scans([scan_part([image], (0, 0, 0), axes)], image.shape)


def segment(
    pipeline: Pipeline,
    image: np.ndarray,
    lattice: Lattice,
    *,
    spacing: Sequence[float] = SPACING,
    order: int = 1,
    norm: VolumeNorm = UNSETTLED,
) -> dict[Triple, CellResult]:
    """What comes of each cell, block by block, in scan order (``order`` 1) or from the end (-1)."""
    scene = open_volume(pipeline, [lazy_volume(image, spacing)], scan_of(image), 0)
    results: dict[Triple, CellResult] = {}
    for block in lattice.blocks()[::order]:
        cells = lattice.cells_of(block)
        found = segment_cells(scene, [lattice.core(cell) for cell in cells], Run(), norm)
        results |= dict(zip(cells, found, strict=True))
    return results


def settled(pipeline: Pipeline, image: np.ndarray, lattice: Lattice) -> VolumeNorm:
    """What a run settles of ``norm: case`` before it segments, from the regions of all cells."""
    scene = open_volume(pipeline, [lazy_volume(image)], scan_of(image), 0)
    seen = [look_at_cell(scene, lattice.core(index), Run()) for index in lattice.cells()]
    known, chosen = ([box for pair in seen for box in pair[number]] for number in (0, 1))
    alone, statistics, _ = settle(scene, known, chosen, True, Run())
    return VolumeNorm(statistics, alone)


def side_by_side(results: dict[Triple, CellResult], lattice: Lattice) -> np.ndarray:
    """Each cell's own labels; what was found in its neighbours is lost."""
    labels = np.zeros(lattice.shape, np.uint8)
    for cell, result in results.items():
        labels[lattice.core(cell).slices] = result.part(lattice.core(cell))
    return labels


def merged(results: dict[Triple, CellResult], lattice: Lattice) -> np.ndarray:
    """What cells make of each other's findings.

    Each cell's own foreground, else that of the first other cell whose fine network found any there, else background
    where some fine network looked, else what the cell has.
    """
    whole, own = Box.whole(lattice.shape), side_by_side(results, lattice)
    found, looked, kept = np.zeros_like(own), np.zeros(own.shape, bool), np.zeros(own.shape, bool)
    for cell in reversed(lattice.cells()):
        decided, core = results[cell].decided_in(whole), lattice.core(cell).slices
        looked |= decided
        kept[core] = decided[core] & (own[core] != 0)
        decided[core] = False
        np.copyto(found, results[cell].part(whole), where=decided & (results[cell].part(whole) != 0))
    return np.where(kept, own, np.where(found != 0, found, np.where(looked, 0, own)))


def write_image(
    folder: Path, image: np.ndarray, *, spacing: Sequence[float] = SPACING, levels: int = 1, chunk: int = 16
) -> Path:
    """An OME-NGFF 0.5 image; each further level takes every second voxel in y and x."""
    datasets = []
    for level in range(levels):
        step = 2**level
        voxels = image[:, ::step, ::step]
        chunks = tuple(min(chunk, edge) for edge in voxels.shape)
        zarr.create_array(folder / str(level), data=voxels, chunks=chunks, zarr_format=3)
        scale = [spacing[0], spacing[1] * step, spacing[2] * step]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]
    group = zarr.open_group(folder, mode="a", zarr_format=3)
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return folder
