"""Coarser heatmaps, and how much of a heatmap boxes hold."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from heatmap_examples import VOLUMES, common_grid, heatmaps, spot
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_boxes import boxes

from canvas import Box
from coarse2fine.regions import search_grid as heatmap_module
from coarse2fine.regions.search_grid import box_mass, downsample_max, mass_inside

relaxed = settings(deadline=None)


# --- downsample_max


@relaxed
@given(heatmaps(), VOLUMES, st.tuples(*[st.integers(1, 6)] * 3))
def test_downsample_max__any_voxel_size__equals_the_maximum_over_each_voxel(heatmap, volume, voxel) -> None:
    """Coarser or finer, whole or fractional: each new voxel holds the maximum of what it overlaps."""
    result = downsample_max(heatmap, volume, voxel)
    assert result.shape == tuple(ceil(edge / size) for edge, size in zip(volume, voxel, strict=True))
    for index in np.ndindex(*result.shape):
        fine, inside = common_grid(heatmap, volume, Box.of(np.multiply(index, voxel), voxel))
        assert result[index] == fine[inside].max()


def test_downsample_max__single_bright_voxel__survives_where_a_mean_would_not() -> None:
    """One bright voxel among 512 stays above the threshold; their mean is far below it."""
    heatmap = spot((8, 8, 8), ((3, 3, 3), (4, 4, 4), 0.9))
    assert downsample_max(heatmap, (8, 8, 8), (8, 8, 8)).item() == np.float32(0.9)
    assert heatmap.mean() < 0.01


# --- box_mass


@relaxed
@given(heatmaps(), VOLUMES, boxes(), st.sampled_from([0.0, 0.125, 0.5]))
def test_box_mass__fractional_edges__equals_the_sum_on_a_common_grid(heatmap, volume, box, threshold) -> None:
    """Parts of heatmap voxels count with their share, whatever the two grids."""
    fine, inside = common_grid(heatmap, volume, box)
    expected = fine[inside & (fine > threshold)].sum(dtype=np.float64) / heatmap.size
    assert box_mass(heatmap, volume, box, threshold) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_box_mass__many_chunks__is_the_same(monkeypatch) -> None:
    """Summing plane by plane changes nothing."""
    heatmap = np.random.default_rng(0).random((7, 5, 6), dtype=np.float32)
    box = Box((3, 2, 1), (16, 9, 11))
    expected = box_mass(heatmap, (20, 10, 12), box)
    monkeypatch.setattr(heatmap_module, "_CHUNK", 1)
    assert box_mass(heatmap, (20, 10, 12), box) == pytest.approx(expected, rel=1e-12)


# --- mass_inside


@relaxed
@given(heatmaps(), VOLUMES, st.lists(boxes(), max_size=5), st.sampled_from([0.0, 0.25]))
def test_mass_inside__any_boxes__sums_voxels_whose_centres_they_hold(heatmap, volume, boxes, threshold) -> None:
    """Compared voxel by voxel with exact fractions; overlapping boxes count once."""
    assume((heatmap > threshold).any())
    total = held = 0.0
    for index in np.ndindex(*heatmap.shape):
        if heatmap[index] <= threshold:
            continue
        total += heatmap[index]
        sizes = [Fraction(edge, count) for edge, count in zip(volume, heatmap.shape, strict=True)]
        centre = [(2 * position + 1) * size / 2 for position, size in zip(index, sizes, strict=True)]
        held += heatmap[index] * any(
            all(a <= at < b for a, at, b in zip(box.start, centre, box.stop, strict=True)) for box in boxes
        )
    assert mass_inside(heatmap, volume, boxes, threshold) == pytest.approx(held / total, rel=1e-12)


def test_mass_inside__threshold__leaves_the_background_out() -> None:
    """Faint background outside of the box counts only without the threshold."""
    heatmap = spot((1, 1, 10), ((0, 0, 0), (1, 1, 10), 0.125), ((0, 0, 0), (1, 1, 2), 0.5))
    boxes = [Box((0, 0, 0), (1, 1, 2))]
    assert mass_inside(heatmap, (1, 1, 10), boxes) == 0.5
    assert mass_inside(heatmap, (1, 1, 10), boxes, threshold=0.25) == 1.0


def test_mass_inside__empty_heatmap__misses_nothing() -> None:
    """Nothing above the threshold means that nothing was missed."""
    assert mass_inside(spot((2, 2, 2)), (4, 4, 4), []) == 1.0
