"""From the heatmap of the coarse network to candidate regions and the tree of regions.

Where heatmap voxels lie is said in ``coarse2fine.regions.search_grid``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import cc3d
import numpy as np
from numpy.typing import NDArray

from assignnet.choice.cost_model import tiles_along
from assignnet.choice.tree import Roi
from canvas.box import Box, Triple, triple
from coarse2fine.regions.components import label_components
from coarse2fine.regions.search_grid import Heatmap, Indices, Place, SearchGrid, box_mass, downsample_part


@dataclass(frozen=True, slots=True, kw_only=True)
class RoiSettings:
    """How candidate regions are found.

    Attributes:
        threshold: Voxels of the heatmap above it may be foreground.
        window: Largest candidate (z, y, x) in working-grid voxels, normally the slot; larger components are cut.
        heatmap_voxel: Voxel of the grid on which components are found, in working-grid voxels; ``None`` for the
            heatmap's own grid.
        min_edge: A component is ignored if an edge of its box is shorter, in working-grid voxels.
        min_voxels: A component is ignored if it has fewer voxels of the grid on which components are found.
        margin: Working-grid voxels added on each side of a component's box.
        window_step: Largest step between the windows that cut a component, as a share of the window, in (0, 1].

    Raises:
        ValueError: If a number is out of its range.
    """

    threshold: float
    window: Triple
    heatmap_voxel: Triple | None = None
    min_edge: float = 0.0
    min_voxels: float = 0.0
    margin: Triple = (0, 0, 0)
    window_step: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold {self.threshold} is not in [0, 1)")
        if min(self.window) < 1 or min(self.heatmap_voxel or (1,)) < 1:
            raise ValueError(f"window {self.window} or heatmap_voxel {self.heatmap_voxel} has an edge below 1 voxel")
        if min(self.margin) < 0 or not 0 < self.window_step <= 1:
            raise ValueError(f"margin {self.margin} is negative or window_step {self.window_step} is not in (0, 1]")


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """What of a heatmap lies above the threshold, connected voxels (26 neighbours) by name.

    Attributes:
        labels: Name of the component that each voxel belongs to, 0 for none.
        heatmap: Probabilities of the same voxels.
        grid: Where they lie.
    """

    labels: NDArray[np.unsignedinteger]
    heatmap: Heatmap
    grid: SearchGrid


def find_rois(heatmap: Heatmap, volume: Triple, settings: RoiSettings) -> list[Roi]:
    """Candidate regions: the boxes of connected components (26 neighbours) of the voxels above the threshold.

    A component whose box fits into the window is one candidate. A larger one is cut by windows that are spread evenly
    over its box like nnU-Net's tiles; each window in which the component has voxels becomes a candidate, shrunk to
    those voxels plus the margin. Together the candidates hold every voxel of every component that is not ignored.

    Args:
        heatmap: Probabilities (z, y, x); see ``coarse2fine.regions.search_grid``.
        volume: Shape (z, y, x) of the working grid.
        settings: See ``RoiSettings``.

    Returns:
        Candidates in scan order of their components. No edge is longer than the window's. The score is the highest
        probability of the component inside the box, the mass is ``box_mass``.

    Raises:
        ValueError: If the heatmap is not 3D, is empty or holds NaN.
    """
    found = find_components(heatmap, volume, settings)
    return candidates(found, large_components(found, settings), heatmap, volume, settings)


def find_components(heatmap: Heatmap, volume: Triple, settings: RoiSettings, place: Place | None = None) -> Components:
    """Connected components of the voxels above the threshold, on the grid that the settings ask for.

    Args:
        heatmap: Probabilities (z, y, x); see ``coarse2fine.regions.search_grid``.
        volume: Shape (z, y, x) of the working grid.
        settings: See ``RoiSettings``.
        place: Where the heatmap lies, if it is a part of one. Components then end where the part does.

    Raises:
        ValueError: If the heatmap is not 3D, is empty or holds NaN.
    """
    if heatmap.ndim != 3 or heatmap.size == 0 or np.isnan(heatmap.max()):
        raise ValueError(f"heatmap of shape {heatmap.shape} must be a 3D array without NaN")
    grid, searched = SearchGrid.of(heatmap.shape, volume, place), heatmap
    if size := settings.heatmap_voxel:
        searched, start = downsample_part(heatmap, volume, size, place or Place((0, 0, 0), triple(heatmap.shape)))
        grid = SearchGrid(volume, size, (1, 1, 1), start)
    labels = label_components(searched > settings.threshold)
    return Components(labels[tuple(slice(edge) for edge in searched.shape)], searched, grid)


def search_grid(heatmap: Triple, volume: Triple, voxel: Triple | None) -> SearchGrid:
    """The grid on which components of a whole heatmap are searched.

    Args:
        heatmap: Shape of the heatmap.
        volume: Shape of the working grid.
        voxel: Its voxel, in working-grid voxels; None for the heatmap's own.
    """
    return SearchGrid(volume, voxel, (1, 1, 1)) if voxel else SearchGrid(volume, volume, heatmap)


def large_components(found: Components, settings: RoiSettings) -> NDArray[np.unsignedinteger]:
    """The labels, without components that are too small."""
    _, starts, stops, counts = component_bounds(found.labels)
    kept = np.concatenate([[False], is_large(found.grid, starts, stops, counts, settings)])
    return np.where(kept[found.labels], found.labels, np.zeros((), found.labels.dtype))


def is_large(
    grid: SearchGrid, starts: Indices, stops: Indices, counts: Indices, settings: RoiSettings
) -> NDArray[np.bool_]:
    """Whether components are large enough; arguments as ``component_bounds`` returns them."""
    edges = (stops - starts) * np.array(grid.above) / np.array(grid.below)
    large: NDArray[np.bool_] = edges.min(axis=1, initial=np.inf) >= settings.min_edge
    return large & (counts >= settings.min_voxels)


def component_bounds(labels: NDArray[np.unsignedinteger]) -> tuple[Indices, Indices, Indices, Indices]:
    """Names (n,) of components, first voxels, the ones after the last (n, 3), and how many voxels each has (n,)."""
    found = cc3d.statistics(labels, no_slice_conversion=True)
    # Label 0 is the background. Bounds are first and last voxel, axis by axis in the order of the array.
    bounds = found["bounding_boxes"][1:].astype(np.int64)
    counts = found["voxel_counts"][1:].astype(np.int64)
    return np.arange(1, len(bounds) + 1), bounds[:, 0::2], bounds[:, 1::2] + 1, counts


def candidates(
    found: Components,
    labels: NDArray[np.unsignedinteger],
    heatmap: Heatmap,
    volume: Triple,
    settings: RoiSettings,
    place: Place | None = None,
) -> list[Roi]:
    """Candidates of those components that ``labels`` name; see ``find_rois``.

    Args:
        found: Where components were searched.
        labels: Which ones are wanted, as in ``found`` or others.
        heatmap: The heatmap, in its own voxels.
        volume: Shape (z, y, x) of the working grid.
        settings: See ``RoiSettings``; what is too small is not asked here.
        place: Where the heatmap lies, if it is a part of one.
    """
    names, starts, stops, counts = component_bounds(labels)
    there = counts > 0
    names, starts, stops = names[there], starts[there], stops[there]
    rois = []
    tight = found.grid.boxes(starts, stops)
    grown = np.concatenate([tight[:, :3] - settings.margin, tight[:, 3:] + settings.margin], axis=1)
    blocks = _boxes(np.concatenate([starts, stops], axis=1))
    for name, block, box in zip(names, blocks, _boxes(np.clip(grown, 0, volume * 2)), strict=True):
        own = labels[block.slices] == name
        part = np.where(own, found.heatmap[block.slices], np.float32(0))
        for candidate, score in _candidates(part, own, block, box, found.grid, settings):
            rois.append(Roi(candidate, score, box_mass(heatmap, volume, candidate, settings.threshold, place)))
    return rois


def _candidates(
    part: Heatmap, own: NDArray[np.bool_], block: Box, box: Box, grid: SearchGrid, settings: RoiSettings
) -> Iterator[tuple[Box, float]]:
    """Candidates of one component, and the highest probability that it has in each.

    ``own`` says which voxels of its bounding box ``block`` (heatmap voxels) are the component's, ``part`` has their
    probabilities, and ``box`` is the bounding box on the working grid, with margin.
    """
    if box.fits(settings.window):
        yield box, float(part.max())
        return
    for window, seen in _windows(box, block, grid, settings):
        held = own[seen.slices]
        if not held.any():
            continue
        found = [np.flatnonzero(held.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        offset = np.add(block.start, seen.start)
        corners = grid.boxes(offset + [index[0] for index in found], offset + [index[-1] + 1 for index in found])
        tight = _boxes(corners[None])[0].clip(window)
        # Clipped to the window, not to the component: a candidate must not outgrow the slot for its margin.
        yield tight.grow(settings.margin).clip(window), float(part[seen.slices].max())


def _windows(box: Box, block: Box, grid: SearchGrid, settings: RoiSettings) -> Iterator[tuple[Box, Box]]:
    """Evenly spread windows over a box, with the heatmap voxels that each touches, counted from ``block``'s start."""
    axes = []
    for axis, (start, edge, size) in enumerate(zip(box.start, box.shape, settings.window, strict=True)):
        length = min(edge, size)
        count = tiles_along(edge, length, settings.window_step)
        step = (edge - length) / (count - 1) if count > 1 else 0.0
        spans = []
        for first in dict.fromkeys(start + round(step * index) for index in range(count)):
            low, high = (max(voxel - block.start[axis], 0) for voxel in grid.touched(axis, first, first + length))
            spans.append((first, first + length, low, high))
        axes.append(spans)
    for z, y, x in product(*axes):
        yield Box((z[0], y[0], x[0]), (z[1], y[1], x[1])), Box((z[2], y[2], x[2]), (z[3], y[3], x[3]))


def _boxes(corners: Indices) -> list[Box]:
    return [Box((a, b, c), (d, e, f)) for a, b, c, d, e, f in corners.tolist()]
