"""From the heatmap of the coarse network to candidate regions and the tree of regions.

A heatmap is an array (z, y, x) of foreground probabilities over the same physical extent as the working grid of shape
``volume``: heatmap voxel i covers ``[i * volume / n, (i + 1) * volume / n)`` of an axis with n heatmap voxels. All
positions are computed in integers, so no rounding error can move a box off its object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import cc3d
import numpy as np
from numpy.typing import NDArray

from assignnet.problem import tiles_along
from assignnet.tree import Roi, RoiTree
from canvas.box import Box, Triple, to_array, triple
from coarse2fine.components import label_components
from coarse2fine.nms import Merging, Overlap, merge, suppress

Heatmap = NDArray[np.float32]
Indices = NDArray[np.int64]

_CHUNK = 1 << 20  # voxels that a sum over a box copies at a time


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


@dataclass(frozen=True, slots=True)
class _Grid:
    """Edges of heatmap voxels on the working grid: edge i lies at i * ``above`` / ``below``, at most at ``volume``."""

    volume: Triple
    above: Triple
    below: Triple

    @classmethod
    def of(cls, heatmap: NDArray[np.generic], volume: Triple) -> _Grid:
        return cls(volume, volume, triple(heatmap.shape))

    def boxes(self, starts: Indices, stops: Indices) -> Indices:
        """Working-grid boxes (..., 6) that hold the heatmap voxels ``starts <= index < stops``, each (..., 3)."""
        low = starts * self.above // self.below
        high = -(-stops * self.above // self.below)
        return np.minimum(np.concatenate([low, high], axis=-1), np.tile(self.volume, 2))

    def touched(self, axis: int, start: int, stop: int) -> tuple[int, int]:
        """First heatmap voxel, and the one after the last, that working-grid voxels ``start`` to ``stop`` touch."""
        return start * self.below[axis] // self.above[axis], -(-stop * self.below[axis] // self.above[axis])

    def inside(self, box: Box) -> tuple[slice, slice, slice]:
        """The heatmap voxels whose centres lie in a working-grid box."""
        axes = zip(box.start, box.stop, self.above, self.below, strict=True)
        z, y, x = (
            slice(*((2 * voxel * below + above - 1) // (2 * above) for voxel in (a, b))) for a, b, above, below in axes
        )
        return z, y, x

    def lengths(self, axis: int, start: int, stop: int) -> NDArray[np.float64]:
        """Working-grid voxels of a non-empty interval that lie in each of the heatmap voxels ``touched`` by it."""
        first, last = self.touched(axis, start, stop)
        size = self.above[axis] / self.below[axis]
        lengths = np.full(last - first, size)
        lengths[0] -= start - first * size
        lengths[-1] -= last * size - stop
        return lengths


def downsample_max(heatmap: Heatmap, volume: Triple, voxel: Triple) -> Heatmap:
    """Bring a heatmap to another voxel size, keeping every maximum.

    Each new voxel takes the highest value of all the heatmap voxels that it overlaps, however little, so nothing
    above a threshold disappears. New voxels may be larger or smaller than the old ones.

    Args:
        heatmap: Probabilities (z, y, x).
        volume: Shape (z, y, x) of the working grid that the heatmap covers.
        voxel: New voxel size (z, y, x) in working-grid voxels.

    Returns:
        Array of shape ``ceil(volume / voxel)``. Voxel i of an axis covers ``[i * voxel, (i + 1) * voxel)``; the last
        one is cut off at the end of the volume.

    >>> downsample_max(np.float32([[[0, 5, 1, 2]]]), (1, 1, 8), (1, 1, 3)).tolist()
    [[[5.0, 5.0, 2.0]]]
    """
    result = heatmap
    for axis, (old, edge, size) in enumerate(zip(heatmap.shape, volume, voxel, strict=True)):
        starts = np.arange(0, edge, size)
        stops = np.minimum(starts + size, edge)
        first, last = starts * old // edge, -(-stops * old // edge) - 1
        source = result
        result = source.take(first, axis=axis)
        for offset in range(1, int((last - first).max(initial=0)) + 1):
            np.maximum(result, source.take(np.minimum(first + offset, last), axis=axis), out=result)
    return result


def find_rois(heatmap: Heatmap, volume: Triple, settings: RoiSettings) -> list[Roi]:
    """Candidate regions: the boxes of connected components (26 neighbours) of the voxels above the threshold.

    A component whose box fits into the window is one candidate. A larger one is cut by windows that are spread evenly
    over its box like nnU-Net's tiles; each window in which the component has voxels becomes a candidate, shrunk to
    those voxels plus the margin. Together the candidates hold every voxel of every component that is not ignored.

    Args:
        heatmap: Probabilities (z, y, x); see the module's docstring.
        volume: Shape (z, y, x) of the working grid.
        settings: See ``RoiSettings``.

    Returns:
        Candidates in scan order of their components. No edge is longer than the window's. The score is the highest
        probability of the component inside the box, the mass is ``box_mass``.

    Raises:
        ValueError: If the heatmap is not 3D, is empty or holds NaN.
    """
    if heatmap.ndim != 3 or heatmap.size == 0 or np.isnan(heatmap.max()):
        raise ValueError(f"heatmap of shape {heatmap.shape} must be a 3D array without NaN")
    grid, searched = _Grid.of(heatmap, volume), heatmap
    if size := settings.heatmap_voxel:
        grid, searched = _Grid(volume, size, (1, 1, 1)), downsample_max(heatmap, volume, size)
    labels = label_components(searched > settings.threshold)
    names, starts, stops = _components(labels, grid, settings)
    rois = []
    tight = grid.boxes(starts, stops)
    grown = np.concatenate([tight[:, :3] - settings.margin, tight[:, 3:] + settings.margin], axis=1)
    blocks = _boxes(np.concatenate([starts, stops], axis=1))
    for name, block, box in zip(names, blocks, _boxes(np.clip(grown, 0, volume * 2)), strict=True):
        own = labels[block.slices] == name
        part = np.where(own, searched[block.slices], np.float32(0))
        for candidate, score in _candidates(part, own, block, box, grid, settings):
            rois.append(Roi(candidate, score, box_mass(heatmap, volume, candidate, settings.threshold)))
    return rois


def build_tree(
    rois: Sequence[Roi],
    heatmap: Heatmap,
    volume: Triple,
    *,
    threshold: float,
    nms_threshold: float,
    nmm_threshold: float,
    nms_overlap: Overlap = "iou",
    nmm_overlap: Overlap = "ios",
    nmm_merging: Merging = "greedy",
) -> RoiTree:
    """Children: the candidates that survive NMS. Parents: the hulls of the groups that NMM makes of the children.

    A parent's score is the best of its children, its mass is measured anew inside the hull, because children may
    overlap and the hull may hold more than they do. If one child fills the hull of its group, that child is the
    parent and the others, which lie inside it, are left out. Groups that would put the same box into the tree twice
    become one.

    Args:
        rois: Candidates from ``find_rois``.
        heatmap: The heatmap in which they were found.
        volume: As there.
        threshold: The heatmap threshold with which they were found (not an overlap).
        nms_threshold: Overlap from which on the worse of two candidates is dropped.
        nmm_threshold: Overlap from which on two children belong to one parent.
        nms_overlap: Overlap that NMS compares; see ``coarse2fine.nms``.
        nmm_overlap: Overlap that NMM compares.
        nmm_merging: How NMM groups.

    Returns:
        The tree; parents in falling order of score, children of a parent too.
    """
    scores = np.array([roi.score for roi in rois])
    children = [rois[i] for i in suppress(to_array(roi.box for roi in rois), scores, nms_threshold, nms_overlap)]
    scores = np.array([roi.score for roi in children])
    merged = merge(to_array(roi.box for roi in children), scores, nmm_threshold, nmm_overlap, nmm_merging)
    groups = _without_repeats([[children[i] for i in group] for group in merged])
    parents, families = [], []
    for group in groups:
        hull, score = _hull(group), max(roi.score for roi in group)
        filling = [roi for roi in group if roi.box == hull]
        mass = filling[0].mass if filling else box_mass(heatmap, volume, hull, threshold)
        parent = Roi(hull, score, mass)
        parents.append(parent)
        families.append((parent,) if filling else tuple(group))
    return RoiTree(tuple(parents), tuple(families), volume)


def box_mass(heatmap: Heatmap, volume: Triple, box: Box, threshold: float = 0.0) -> float:
    """Sum of the probabilities above the threshold inside a box, counted in voxels of the working grid.

    Exact for fractional edges: a heatmap voxel of which the box holds a part counts with that part.

    Args:
        heatmap: Probabilities (z, y, x); see the module's docstring.
        volume: Shape (z, y, x) of the working grid.
        box: Box in working-grid voxels; what lies outside of the volume counts nothing.
        threshold: Heatmap voxels at or below it count nothing.

    >>> box_mass(np.full((1, 1, 2), 0.5, np.float32), (4, 4, 8), Box((0, 0, 0), (2, 2, 3)))
    6.0
    """
    grid = _Grid.of(heatmap, volume)
    spans = [(axis, max(box.start[axis], 0), min(box.stop[axis], volume[axis])) for axis in range(3)]
    if any(start >= stop for _, start, stop in spans):
        return 0.0
    block = heatmap[tuple(slice(*grid.touched(*span)) for span in spans)]
    depth, rows, columns = (grid.lengths(*span) for span in spans)
    step = max(1, _CHUNK // (len(rows) * len(columns)))
    mass = 0.0
    for top in range(0, len(depth), step):
        values = block[top : top + step]
        counted = np.where(values > threshold, values, np.float32(0)) * columns
        mass += float(((counted.sum(axis=2) * rows).sum(axis=1) * depth[top : top + step]).sum())
    return mass


def mass_inside(heatmap: Heatmap, volume: Triple, boxes: Iterable[Box], threshold: float = 0.0) -> float:
    """Share of the heatmap's mass in the union of the boxes, 0 to 1; a voxel is in it if its centre is.

    Args:
        heatmap: Probabilities (z, y, x); see the module's docstring.
        volume: Shape (z, y, x) of the working grid, of which the boxes count voxels.
        boxes: May overlap and reach out of the volume.
        threshold: Heatmap voxels at or below it belong to neither sum; 0 for the whole heatmap.

    Returns:
        The share; 1 if no voxel is above the threshold, for then nothing was missed.
    """
    grid = _Grid.of(heatmap, volume)
    inside = np.zeros(heatmap.shape, dtype=bool)
    for box in boxes:
        inside[grid.inside(box.clip(Box.whole(volume)))] = True
    above = heatmap > threshold
    total = float(heatmap.sum(where=above, dtype=np.float64))
    np.logical_and(inside, above, out=inside)
    return float(heatmap.sum(where=inside, dtype=np.float64)) / total if total > 0 else 1.0


def _components(
    labels: NDArray[np.unsignedinteger], grid: _Grid, settings: RoiSettings
) -> tuple[Indices, Indices, Indices]:
    """Labels (n,) of the components that are large enough, and the first voxel and the one after the last (n, 3)."""
    found = cc3d.statistics(labels, no_slice_conversion=True)
    # Label 0 is the background. Bounds are first and last voxel, axis by axis in the order of the array.
    bounds = found["bounding_boxes"][1:].astype(np.int64)
    starts, stops = bounds[:, 0::2], bounds[:, 1::2] + 1
    edges = (stops - starts) * np.array(grid.above) / np.array(grid.below)
    large = edges.min(axis=1, initial=np.inf) >= settings.min_edge
    large &= found["voxel_counts"][1:] >= settings.min_voxels
    return np.flatnonzero(large) + 1, starts[large], stops[large]


def _candidates(
    part: Heatmap, own: NDArray[np.bool_], block: Box, box: Box, grid: _Grid, settings: RoiSettings
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


def _windows(box: Box, block: Box, grid: _Grid, settings: RoiSettings) -> Iterator[tuple[Box, Box]]:
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


def _hull(rois: Sequence[Roi]) -> Box:
    corners = to_array(roi.box for roi in rois)
    return Box(triple(corners[:, :3].min(axis=0)), triple(corners[:, 3:].max(axis=0)))


def _boxes(corners: Indices) -> list[Box]:
    return [Box((a, b, c), (d, e, f)) for a, b, c, d, e, f in corners.tolist()]


def _without_repeats(groups: list[list[Roi]]) -> list[list[Roi]]:
    """Join groups until no box, hull or member, belongs to two of them, and no group holds a box twice."""
    while True:
        joined: list[list[Roi]] = []
        position: dict[Box, int] = {}
        for group in groups:
            nodes = [_hull(group), *(roi.box for roi in group)]
            target = min((position[box] for box in nodes if box in position), default=len(joined))
            if target == len(joined):
                joined.append([])
            members = {roi.box: roi for roi in reversed([*joined[target], *group])}
            joined[target] = sorted(members.values(), key=lambda roi: (-roi.score, roi.box))
            position.update(dict.fromkeys(nodes, target))
        if len(joined) == len(groups):
            return joined
        groups = joined
