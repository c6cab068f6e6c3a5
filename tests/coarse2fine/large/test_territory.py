"""Regions of many cells against those of the whole heatmap."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from canvas import Box, Triple
from coarse2fine.large.lattice import Lattice
from coarse2fine.large.territory import divide
from coarse2fine.large.window import window_of
from coarse2fine.regions.detect import (
    Components,
    RoiSettings,
    candidates,
    find_components,
    find_rois,
    large_components,
    search_grid,
)
from coarse2fine.regions.search_grid import Place, SearchGrid

Triples = st.tuples(*[st.integers(1, 5)] * 3)


@st.composite
def worlds(draw: st.DrawFn, shortest: int, longest: int) -> dict[str, Any]:
    """A heatmap with some boxes in it, over a volume and a working grid of other shapes, and cells with a halo."""
    coarse = draw(st.tuples(*[st.integers(4, 14)] * 3))
    heatmap = np.zeros(coarse, np.float32)
    for index in range(draw(st.integers(1, 6))):
        start = [draw(st.integers(0, edge - 1)) for edge in coarse]
        heatmap[Box.of(start, draw(Triples)).clip(Box.whole(coarse)).slices] = 0.6 + index / 20
    working = tuple(draw(st.integers(edge, 3 * edge)) for edge in coarse)
    native = tuple(draw(st.integers(edge, 3 * edge)) for edge in coarse)
    edges = tuple(tuple(sorted({0, size, *draw(st.lists(st.integers(1, size), max_size=2))})) for size in native)
    return {
        "heatmap": heatmap,
        "working": working,
        "native": native,
        "lattice": Lattice(edges),
        "halo": draw(st.tuples(*[st.integers(shortest, longest)] * 3)),
        "settings": RoiSettings(
            threshold=0.5,
            window=(99, 99, 99),
            heatmap_voxel=draw(st.none() | st.tuples(*[st.integers(1, 4)] * 3)),
            min_edge=draw(st.sampled_from([0.0, 3.0, 5.0])),
            min_voxels=draw(st.sampled_from([0.0, 4.0, 9.0])),
            margin=draw(st.tuples(*[st.integers(0, 2)] * 3)),
        ),
    }


def regions_by_cell(world: dict[str, Any]) -> list[tuple[list[Any], list[Any], Any, Triple]]:
    """Own regions and those of others, as each cell finds them in the part of the heatmap that it sees."""
    found = []
    heatmap, working, options = world["heatmap"], world["working"], world["settings"]
    grid = search_grid(heatmap.shape, working, options.heatmap_voxel)
    for cell in world["lattice"].cells():
        core = world["lattice"].core(cell)
        window = window_of(core, world["halo"], world["native"], heatmap.shape, grid, options.margin)
        part, place = heatmap[window.coarse.slices], Place(window.coarse.start, heatmap.shape)
        components = find_components(part, working, options, place)
        territory = divide(components, window.core, window.reach, options)
        own, others = (
            candidates(components, names, part, working, options, place) for names in (territory.own, territory.others)
        )
        found.append((own, others, window, window.reach))
    return found


@settings(max_examples=60, deadline=None)
@given(worlds(12, 24))
def test_divide__regions_that_the_halo_holds__belong_to_one_cell_each_as_in_the_whole_heatmap(
    world: dict[str, Any],
) -> None:
    """Box, score and mass are those of the whole heatmap's regions; what is too small there is so everywhere."""
    found = regions_by_cell(world)
    reach = found[0][3]
    whole = find_components(world["heatmap"], world["working"], world["settings"])
    names, count = ndimage.label(whole.labels > 0, np.ones((3, 3, 3)))
    sizes = [[s.stop - s.start for s in part] for part in ndimage.find_objects(names)]
    assert len(sizes) == count
    expected = find_rois(world["heatmap"], world["working"], world["settings"])
    assume(all(size <= limit for box in sizes for size, limit in zip(box, reach, strict=True)))
    assert Counter(roi.box for own, *_ in found for roi in own) == Counter(roi.box for roi in expected)
    scores = {roi.box: roi.score for roi in expected}
    masses = {roi.box: roi.mass for roi in expected}
    for own, others, *_ in found:
        for roi in own:
            assert roi.score == scores[roi.box]
            np.testing.assert_allclose(roi.mass, masses[roi.box], rtol=1e-5)
        assert len(scores) < len(expected) or not {roi.box for roi in own} & {roi.box for roi in others}


@settings(max_examples=60, deadline=None)
@given(worlds(0, 9))
def test_divide__regions_longer_than_the_halo__are_covered_by_the_cells_that_they_lie_in(world: dict[str, Any]) -> None:
    """No voxel of a region that is large enough is lost, and an object of the halo's length is never a longer one."""
    found = regions_by_cell(world)
    covered = np.zeros(world["working"], bool)
    for own, *_ in found:
        for roi in own:
            covered[roi.box.slices] = True
    whole = find_components(world["heatmap"], world["working"], world["settings"])
    kept = np.argwhere(large_components(whole, world["settings"]))
    for corners in whole.grid.boxes(kept, kept + 1).tolist():
        assert covered[Box(tuple(corners[:3]), tuple(corners[3:])).slices].all()
    grid = search_grid(world["heatmap"].shape, world["working"], world["settings"].heatmap_voxel)
    for halo, reach, n, size, above, below in zip(
        world["halo"], found[0][3], world["native"], world["working"], grid.above, grid.below, strict=True
    ):
        voxel = above / below * n / size
        # From just before the end of one voxel, an interval of the halo's length touches this many.
        assert np.floor(halo / voxel - 1e-9) + 1 <= reach + 1e-9


def test_divide__cells_share_all_voxels_of_the_search_grid() -> None:
    """Whatever the sizes, each voxel's centre lies in one cell."""
    for native, coarse, voxel in (((9, 11, 13), (3, 4, 5), None), ((9, 11, 13), (9, 5, 13), (2, 3, 4))):
        working, lattice = (10, 12, 7), Lattice(((0, 4, 9), (0, 1, 2, 11), (0, 7, 12, 13)))
        grid = search_grid(coarse, working, voxel)
        seen = np.zeros(grid.whole, int)
        for cell in lattice.cells():
            seen[window_of(lattice.core(cell), (0, 0, 0), native, coarse, grid).core.slices] += 1
        assert (seen == 1).all()


@pytest.mark.parametrize(("start", "own"), [(1, True), (0, False)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_divide__region_that_goes_on_where_nothing_is_seen__is_not_called_too_small(
    start: int, own: bool, mirrored: bool
) -> None:
    """What of it lies in the cell is segmented; a region that ends at the volume's own end is judged by its size."""
    labels, whole = np.zeros((1, 1, 10), np.uint8), 20
    labels[..., :4] = 1
    core = Box((0, 0, start + 3), (1, 1, start + 6))
    if mirrored:
        labels, start = labels[..., ::-1].copy(), whole - 10 - start
        core = Box((0, 0, whole - core.stop[2]), (1, 1, whole - core.start[2]))
    grid = SearchGrid((1, 1, whole), (1, 1, 1), (1, 1, 1), (0, 0, start))
    found = Components(labels, labels.astype(np.float32), grid)
    small = RoiSettings(threshold=0.5, window=(9, 9, 9), min_voxels=9)
    territory = divide(found, core, (1, 1, 2), small)
    expected = np.zeros(labels.shape, bool)
    expected[..., 6 if mirrored else 3] = own
    np.testing.assert_array_equal(territory.own[tuple(map(slice, labels.shape))] > 0, expected)
    assert not territory.others.any()
