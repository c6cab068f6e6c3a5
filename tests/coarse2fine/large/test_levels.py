"""Coarse levels of all kinds under regions of all kinds: where their voxels lie, against positions by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from large_volumes import SPACING, bright_pipeline, lazy_volume, merged, scan_of
from random_boxes import boxes_in

from canvas import Box, Triple
from coarse2fine.io import Grid, LazyArray, Volume
from coarse2fine.io.overlap import touched
from coarse2fine.large.cells import open_volume, segment_cells
from coarse2fine.large.lattice import plan_lattice
from coarse2fine.large.levels import open_level, part_of, reaches_over, uncovered
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import open_view
from coarse2fine.system.timing import Run

Kind = str


def at(array: np.ndarray, spacing: tuple[float, ...], origin: tuple[float, ...]) -> Volume[LazyArray]:
    """An array whose first voxel's centre lies at ``origin`` (z, y, x)."""
    volume = lazy_volume(array, spacing)
    return replace(volume, grid=replace(volume.grid, origin=origin))


def coarser(image: np.ndarray, factor: Triple, kind: Kind) -> Volume[LazyArray]:
    """The next level: every n-th voxel, or means of blocks, of which the last, if not full, is left out or not."""
    spacing = tuple(step * times for step, times in zip(SPACING, factor, strict=True))
    if kind == "strided":
        return at(image[tuple(slice(None, None, times) for times in factor)].copy(), spacing, (0.0, 0.0, 0.0))
    rounded = np.ceil if kind == "mean, rounded up" else np.floor
    shape = [max(1, int(rounded(edge / times))) for edge, times in zip(image.shape, factor, strict=True)]
    missing = [(0, max(0, n * times - edge)) for n, times, edge in zip(shape, factor, image.shape, strict=True)]
    full = np.pad(image.astype(np.float32), missing, mode="edge")
    full = full[tuple(slice(n * times) for n, times in zip(shape, factor, strict=True))]
    z, y, x = factor
    blocks = full.reshape(shape[0], z, shape[1], y, shape[2], x).mean((1, 3, 5))
    origin = tuple((times - 1) / 2 * step for times, step in zip(factor, SPACING, strict=True))
    return at(blocks.astype(image.dtype), spacing, origin)


@pytest.fixture(scope="module")
def bright(model_folder: Callable[..., Path]) -> Path:
    """A model folder for networks that see raw intensities."""
    return model_folder(scheme="NoNormalization", spacing=SPACING)


@pytest.fixture(scope="module", params=[(0, 1, 2), (1, 2, 0)], ids=str)
def model(request: pytest.FixtureRequest, model_folder: Callable[..., Path]) -> Model:
    """A coarse model of either axis order."""
    return load_model(
        model_folder(
            scheme="NoNormalization",
            spacing=(4.0, 4.0, 4.0),
            transpose=request.param,
            resampler="resample_torch_fornnunet",
        )
    )


kinds = st.sampled_from(["strided", "mean, rounded up", "mean, rounded down"])
factors = st.tuples(st.sampled_from([1, 2]), st.sampled_from([1, 2, 4, 8]), st.sampled_from([2, 3, 8]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), kinds, factors)
def test_open_level__ramp__has_the_values_of_the_places_that_voxels_lie_at(
    model: Model, data: st.DataObject, kind: Kind, factor: Triple
) -> None:
    """Interpolation of a ramp is exact between samples, so that any shift, by half a voxel or less, would show."""
    shape = data.draw(st.tuples(st.integers(6, 12), st.integers(24, 50), st.integers(24, 50)))
    region = data.draw(boxes_in(shape, 4))
    z, y, x = np.indices(shape).astype(np.float32)
    slopes = (1.0, 100.0, 10.0)  # per voxel
    image = slopes[0] * z + slopes[1] * y + slopes[2] * x + 1
    finest, level = part_of(lazy_volume(image, SPACING), region), coarser(image, factor, kind)
    view = open_level(level, finest, model, None, scan_of(image[region.slices]))
    values = view.read(Box.whole(view.shape))[0].numpy().transpose(model.untranspose)
    reach = [region.shape[axis] / values.shape[axis] for axis in range(3)]  # voxels of the finest level in one of these
    centres = [region.start[axis] + (np.arange(values.shape[axis]) + 0.5) * reach[axis] - 0.5 for axis in range(3)]
    inside = []
    for axis in range(3):
        ratio = level.grid.spacing[axis] / SPACING[axis]
        first = level.grid.origin[axis] / SPACING[axis]
        count = level.grid.shape[axis] - (kind == "mean, rounded up")  # the last one may be of repeated voxels
        held = first + ratio * np.arange(count)
        near = [c for c in held if region.start[axis] < c + ratio / 2 + 0.5 and c - ratio / 2 + 0.5 < region.stop[axis]]
        inside.append(
            np.flatnonzero((centres[axis] >= near[0]) & (centres[axis] <= near[-1])) if near else np.zeros(0, int)
        )
    grid = np.ix_(*inside)
    expected = 1 + sum(
        slope * centre.reshape([-1 if other == axis else 1 for other in range(3)])
        for axis, (slope, centre) in enumerate(zip(slopes, centres, strict=True))
    )
    np.testing.assert_allclose(values[grid], expected[grid], atol=0.05)


def test_open_level__same_voxels_as_the_finest__is_the_same_view(model_folder: Callable[..., Path]) -> None:
    """Crop, normalisation, resampling and its bounds included, also of an axis that is resampled apart."""
    image = blobs((14, 40, 36))
    for options in ({"spacing": (4.0, 2.0, 2.0)}, {"spacing": (1.5, 1.5, 9.0), "transpose": (1, 2, 0)}):
        model, scan = load_model(model_folder(**options)), scan_of(image)
        finest = lazy_volume(image, SPACING)
        expected = open_view(finest.channels, SPACING, model, scan=scan)
        view = open_level(finest, finest, model, None, scan)
        assert expected.crop != Box.whole(expected.full)
        np.testing.assert_array_equal(view.read(Box.whole(view.shape)), expected.read(Box.whole(expected.shape)))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), kinds, factors)
def test_segment_cells__coarse_level_under_a_region__finds_what_the_run_in_memory_finds(
    bright: Path, data: st.DataObject, kind: Kind, factor: Triple
) -> None:
    """Wherever a region begins: its objects are found as if it had been cut out and the coarse voxels made from it."""
    shape = data.draw(st.tuples(st.integers(8, 14), st.integers(40, 60), st.integers(40, 60)))
    region = data.draw(boxes_in(shape, 8))
    image = np.ones(shape, np.uint8)
    for _ in range(2):  # large enough that some coarse voxel lies in each of them
        edges = [min(2 * times, edge) for times, edge in zip(factor, region.shape, strict=True)]
        corner = [data.draw(st.integers(a, b - n)) for a, b, n in zip(region.start, region.stop, edges, strict=True)]
        image[Box.of(corner, edges).slices] = 200
    overrides = ["coarse.spacing=[2, 2, 2]", "fine.grow=9", "fine.large_boxes=native", "canvas.norm=canvas"]
    pipeline = bright_pipeline(bright, [*overrides, "blocks.halo=[14, 30, 30]"], coarse=60, fine=50)
    cut = image[region.slices].copy()
    whole = pipeline(Volume((cut,), Grid(cut.shape, SPACING), "cut")).labels
    finest, level = part_of(lazy_volume(image, SPACING), region), coarser(image, factor, kind)
    scene = open_volume(pipeline, [finest, level], scan_of(cut), 1)
    lattice = plan_lattice(region.shape, (14, 24, 24), (1, 1, 1))
    results = {cell: next(segment_cells(scene, [lattice.core(cell)], Run())) for cell in lattice.cells()}
    np.testing.assert_array_equal(merged(results, lattice), whole)
    np.testing.assert_array_equal(whole, cut > 50)


@pytest.mark.parametrize(
    ("size", "origin", "shown"),
    [
        (16, 0.0, True),
        (4, 3.5, True),
        (4, 0.0, True),
        (5, 3.5, True),
        (3, 3.5, False),
        (2, 3.5, False),
        (4, 20.0, False),
    ],
)
def test_uncovered__levels_of_another_extent__are_told_from_rounded_ones(size: int, origin: float, shown: bool) -> None:
    """Less than a coarse voxel may be missing at either end; a level may show more."""
    finest = Grid((8, 8, 33), (1.0, 1.0, 1.0))
    level = Grid((8, 8, size), (1.0, 1.0, 8.0), origin=(0.0, 0.0, origin))
    why = uncovered(finest, level, Box.whole(finest.shape))
    assert (not why) is shown
    assert shown or "in x" in why
    # A region needs to be shown itself, not what lies around it.
    assert not uncovered(
        replace(finest, shape=(8, 8, 8), origin=(0.0, 0.0, 16.0)),
        replace(level, origin=(0.0, 0.0, 11.5)),
        Box.whole((8, 8, 8)),
    )


@pytest.mark.parametrize(
    ("size", "origin", "over"), [(4, 3.5, False), (5, 3.5, False), (4, 0.0, False), (8, 3.5, True), (8, -12.5, True)]
)
def test_reaches_over__level_of_larger_extent__is_told(size: int, origin: float, over: bool) -> None:
    """Wrong spacings would put the heatmap elsewhere; rounding up, and taking every n-th voxel, are usual."""
    finest, level = Grid((8, 8, 33), (1.0,) * 3), Grid((8, 8, size), (1.0, 1.0, 8.0), origin=(0.0, 0.0, origin))
    assert ("in x" in reaches_over(finest, level)) is over


@pytest.mark.parametrize(
    ("size", "origin", "box", "expected"),
    [
        (4, 3.5, (0, 33), (0, 4)),
        (4, 3.5, (7, 9), (0, 2)),
        (4, 3.5, (8, 16), (1, 2)),
        (4, 3.5, (32, 33), (3, 4)),  # begins where the level ends
        (2, 3.5, (24, 33), (1, 2)),  # far beyond its end
        (3, 11.5, (0, 2), (0, 1)),  # before its beginning
    ],
)
def test_touched__box_within_and_beyond_a_level__is_at_least_the_nearest_voxel(
    size: int, origin: float, box: tuple[int, int], expected: tuple[int, int]
) -> None:
    """Something can be read for every box, and nothing that the level does not have."""
    finest, level = Grid((8, 8, 33), (1.0,) * 3), Grid((8, 8, size), (1.0, 1.0, 8.0), origin=(0.0, 0.0, origin))
    found = touched(finest, level, Box((0, 0, box[0]), (8, 8, box[1])))
    assert found == Box((0, 0, expected[0]), (8, 8, expected[1]))
