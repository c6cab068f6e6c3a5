"""What cells see and work on beyond their own voxels, and those that have none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import blobs
from large_volumes import SPACING, TWO, bar, bright_pipeline, lazy_volume, merged, pipeline_of, scan_of, segment

from assignnet import RoiTree
from canvas import Box
from coarse2fine.coarse.scene import Scene
from coarse2fine.counts import Tally
from coarse2fine.io import Grid, Volume
from coarse2fine.large.cells import look_around, look_at_cell, open_volume
from coarse2fine.large.lattice import Lattice, plan_lattice
from coarse2fine.system.timing import Run

SHAPE = (16, 40, 36)
Models = tuple[Path, Path]


@pytest.fixture(scope="module")
def models(model_folder: Callable[..., Path]) -> dict[str, Models]:
    """A coarse model with a plain fine one, and with a cascade."""
    coarse = model_folder(spacing=(4.0, 2.0, 2.0), seed=5)
    return {"plain": (coarse, model_folder(seed=6)), "cascade": (coarse, model_folder(cascade=True, seed=7))}


@pytest.fixture(scope="module")
def bright(model_folder: Callable[..., Path]) -> Path:
    """A model folder for networks that see raw intensities on the volume's own grid."""
    return model_folder(scheme="NoNormalization", spacing=SPACING)


@pytest.mark.parametrize("margin", ["[0, 0, 8]", "[1, 3, 12]"])
def test_segment_cells__regions_reach_beyond_the_halo__are_segmented_and_counted_once(
    margin: str, bright: Path
) -> None:
    """A box is never cut off by what is read for its cell, and what it covers of other cells is not counted twice."""
    overrides = ["fine.grow=0", f"rois.margin={margin}", "blocks.halo=[0, 0, 0]", "canvas.norm=canvas"]
    pipeline = bright_pipeline(bright, overrides, coarse=150, fine=60)
    for image in (bar(20, 60, ((0, 200), (31, 120))), bar(4, 31), bar(20, 50)):
        whole = pipeline(Volume((image,), Grid(image.shape, SPACING), "whole"))
        results = segment(pipeline, image, TWO)
        np.testing.assert_array_equal(merged(results, TWO), whole.labels)
        counts = sum((result.counts for result in results.values()), Tally())
        assert asdict(counts.coverage) == pytest.approx(asdict(whole.report.coverage))


@pytest.mark.parametrize("mode", ["accelerated", "one-stage"])
def test_segment_cells__cell_in_the_rim_of_zeros__is_background_without_effort(mode: str, bright: Path) -> None:
    """All of it is cropped away."""
    image, pipeline = bar(40, 50), bright_pipeline(bright, [f"mode={mode}"], coarse=150, fine=60)
    image[image == 1] = 0
    results = segment(pipeline, image, TWO)
    empty = results[0, 0, 0]
    assert (empty.box, empty.counts) == (TWO.core((0, 0, 0)), Tally())
    assert not empty.labels.any()
    np.testing.assert_array_equal(merged(results, TWO) != 0, image != 0)


def test_look_at_cell__all_regions_are_chosen__they_are_where_the_regions_are(models: dict[str, Models]) -> None:
    """Both are counted in the whole working grid, wherever the cell lies."""
    settings = ["rois.window_step=0.5", "assign.agent=all_children", "rois.window=[4, 8, 8]"]
    image, pipeline = blobs(SHAPE), pipeline_of(models["plain"], settings)
    opened, lattice = (
        open_volume(pipeline, [lazy_volume(image)], scan_of(image), 0),
        plan_lattice(SHAPE, (8, 20, 99), (4, 4, 4)),
    )
    for cell in lattice.cells():
        regions, chosen = look_at_cell(opened, lattice.core(cell), Run())
        assert set(chosen) == set(regions) != set()


def test_look_around__any_box__shows_a_cascade_there_what_the_whole_volume_does(models: dict[str, Models]) -> None:
    """With as much around it as interpolation needs."""
    image, pipeline = blobs(SHAPE), pipeline_of(models["cascade"], ["fine.use_prior=true"])
    opened = open_volume(pipeline, [lazy_volume(image)], scan_of(image), 0)
    grid = opened.view.whole
    whole = look_around(opened, Box.whole(grid), Run())
    for box in (Box((3, 9, 5), (10, 20, 21)), Box((0, 0, 0), (5, 7, 9)), Box((6, 13, 16), grid)):
        expected = whole.one_hot(box, grid)
        assert 0 < expected.mean() < 1
        np.testing.assert_array_equal(look_around(opened, box, Run()).one_hot(box, grid), expected)


def test_segment_cells__cascade_and_margins__sees_coarse_labels_of_the_whole_volume_in_its_boxes(
    models: dict[str, Models], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far a box reaches beyond its cell."""
    settings = ["fine.use_prior=true", "rois.margin=[2, 9, 9]", "blocks.halo=[0, 0, 0]", "rois.threshold=0.64"]
    image, pipeline = blobs(SHAPE), pipeline_of(models["cascade"], [*settings, "assign.agent=all_children"])
    opened = open_volume(pipeline, [lazy_volume(image)], scan_of(image), 0)
    lattice = Lattice(((0, 16), (0, 40), (0, 18, 36)))
    grid, seen = opened.view.whole, []
    whole = look_around(opened, Box.whole(grid), Run())
    assert pipeline.segmenter is not None
    chooser = type(pipeline.segmenter.selector)
    choose = chooser.choose

    def watched(self: Any, tree: RoiTree, scene: Scene, *more: Any) -> Any:
        for roi in tree.leaves:
            box = roi.box.shift(scene.view.window.start).clip(Box.whole(grid))
            seen.append(box)
            np.testing.assert_array_equal(scene.coarse.one_hot(box, grid), whole.one_hot(box, grid))
        return choose(self, tree, scene, *more)

    monkeypatch.setattr(chooser, "choose", watched)
    for cell in lattice.cells():
        look_at_cell(opened, lattice.core(cell), Run())
    assert len(seen) > 3
