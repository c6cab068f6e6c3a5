"""Volumes thinner than a patch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs
from large_volumes import SPACING, pipeline_of, segment, settled

from assignnet import Roi, RoiTree
from canvas import Box
from coarse2fine.coarse.heatmap import CoarseStage, predict_heatmap
from coarse2fine.coarse.scene import Scene
from coarse2fine.config.reader import load_config
from coarse2fine.config.schema import Config
from coarse2fine.counts import Tally
from coarse2fine.fine.segment import FineStage
from coarse2fine.io import Grid, Volume
from coarse2fine.large.lattice import plan_lattice
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.nnunet.sliding_window import sliding_window
from coarse2fine.pipeline import Pipeline
from coarse2fine.preprocessing.working_grid import WorkingView, open_view
from coarse2fine.segmenter import Segmented, make_segmenter
from coarse2fine.selection.thin import is_thin, share_tiles, stage_for, two_stage
from coarse2fine.system.timing import Run

# The tiny models' patch is 8 x 16 x 16, their spacing SPACING.
SHARING = ["fine.grow=0", "canvas.norm=canvas", "fine.tile_step=1", "fine.mirroring=false"]
PLACES = [(8, 9), (30, 34), (34, 60), (61, 20), (12, 50), (60, 62)]


@pytest.fixture(scope="module")
def model(model_folder: Callable[..., Path]) -> Model:
    return load_model(model_folder())


def view_of(model: Model, thickness: int, axis: int = 0) -> WorkingView:
    """A volume of 80 voxels along two axes."""
    shape = [80, 80]
    shape.insert(axis, thickness)
    image = blobs((thickness + 4, 84, 84))[2:-2, 2:-2, 2:-2].reshape(thickness, 80, 80)
    image = np.ascontiguousarray(np.moveaxis(image, 0, axis)) + np.int16(1)  # nothing is cropped
    return open_view([image], SPACING, model)


def tree_of(view: WorkingView, count: int) -> RoiTree:
    """Small regions, far apart, each a parent of its own."""
    boxes = [Box.of((0, y, x), (80, 10, 8)).clip(Box.whole(view.shape)) for y, x in PLACES[:count]]
    rois = tuple(Roi(box, 0.9, float(box.volume)) for box in boxes)
    return RoiTree(rois, tuple((roi,) for roi in rois), view.shape)


def heatmap_of(tree: RoiTree) -> np.ndarray:
    """The one in which its regions are found."""
    heatmap = np.zeros(tree.volume, np.float32)
    for roi in tree.parents:
        heatmap[roi.box.slices] = 0.9
    return heatmap


def is_unpacked(view: WorkingView, model: Model, settings: Sequence[str] = ()) -> bool:
    stage = FineStage.of(model, load_config(None, settings))
    return stage_for(stage, view.whole) is not stage


def scene_of(tree: RoiTree, view: WorkingView, model: Model) -> Scene:
    """A volume in which the coarse network saw the regions of a tree."""
    coarse = predict_heatmap(CoarseStage(model, model, load_config(None, []).coarse), view)
    return Scene(view, dataclasses.replace(coarse, heatmap=heatmap_of(tree)))


def segmented(view: WorkingView, model: Model, tree: RoiTree, config: Config) -> Segmented:
    segmenter = make_segmenter(config, model, FineStage.of(model, config))
    return segmenter.segment(tree, scene_of(tree, view, model), Run())


@pytest.mark.parametrize(("thickness", "norm"), [(1, "case"), (3, "canvas"), (7, "slot")])
def test_segment__volume_thinner_than_a_patch__gives_what_two_stage_mode_gives(
    model: Model, thickness: int, norm: str
) -> None:
    """Six regions in a thin volume would share few canvases, but are seen as nnU-Net's tiles are, padding included."""
    view, config = (
        view_of(model, thickness),
        load_config(None, ["assign.agent=greedy", f"canvas.norm={norm}", "fine.mirroring=false"]),
    )
    tree = tree_of(view, 6)
    accelerated, classical = (segmented(view, model, tree, chosen) for chosen in (config, two_stage(config)))
    np.testing.assert_array_equal(accelerated.writer.labels, classical.writer.labels)
    assert accelerated.writer.labels.any()
    assert {canvas.shape for canvas in accelerated.fine.canvases} == {model.patch}


@pytest.mark.parametrize(
    ("thickness", "settings"),
    [
        (8, []),  # as thick as the patch
        (7, ["canvas.enabled=false"]),
        (7, ["fine.postprocess=resize_only"]),
    ],
)
def test_stage_for__thick_volume_or_other_settings__packs_as_asked(
    model: Model, thickness: int, settings: list[str]
) -> None:
    """What users ask for by name is done in thin volumes, too."""
    assert not is_unpacked(view_of(model, thickness), model, settings)
    assert is_unpacked(view_of(model, 7), model)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_segment__regions_everywhere_in_a_thin_volume__share_the_tiles_of_one_stage_mode(
    model: Model, axis: int
) -> None:
    """Patches around the regions would be more than nnU-Net's tiles, so these show what one-stage mode finds there."""
    view, config = view_of(model, 5, axis), load_config(None, SHARING)
    places = [(low, high) for low in range(2, 50, 9) for high in range(2, 50, 9)]
    boxes = [Box.of(np.insert(place, axis, 0), np.insert((6, 6), axis, 5)) for place in places]
    rois = tuple(Roi(box, 0.9, 1.0) for box in boxes)
    tree = RoiTree(rois, tuple((roi,) for roi in rois), view.shape)
    seen = segmented(view, model, tree, config)
    data = view.read(Box.whole(view.shape))
    tiles = list[Box]()
    logits = sliding_window(model, data, tile_step=1, mirroring=False, on_tile=tiles.append).float()
    inside = np.zeros(view.shape, bool)
    for box in boxes:
        inside[box.slices] = True
    expected = np.where(inside, model.labels.from_logits(logits).numpy(), 0)
    assert len(seen.fine.canvases) < min(len(boxes), len(tiles))  # some tiles touch no region
    assert np.mean(seen.writer.labels != expected) < 1e-3  # nnU-Net's sums are in half precision
    assert expected.any()
    assert (inside & (expected == 0)).any()


def test_share_tiles__few_regions__get_patches_around_them(model: Model) -> None:
    """A patch is shared only where that takes fewer passes."""
    view, stage = view_of(model, 5), FineStage.of(model, load_config(None, []))
    classical = stage_for(stage, view.whole)
    assert [share_tiles(classical, tree_of(view, count), view.shape).plan.shared for count in (2, 6)] == [False, False]


def test_stage_for__window_of_a_thick_volume__is_not_thin(model: Model) -> None:
    """What counts is the volume, and not the part of it that is worked on."""
    view = view_of(model, 20).within(Box((4, 0, 0), (8, 80, 80)))
    assert not is_unpacked(view, model)
    assert is_thin((20, 80, 15), model.patch)


@pytest.mark.long
def test_pipeline__thin_volume__says_that_nobody_chose(model: Model, model_folder: Callable[..., Path]) -> None:
    """What became of the settings of canvases and agent is in the report, and its words add up over cells."""
    coarse = model_folder(spacing=(2.0, 2.0, 2.0), seed=5)
    image = blobs((7, 80, 80)) + np.int16(1)
    volume = Volume((image,), Grid(image.shape, SPACING), "thin")
    names = [f"coarse.model={coarse}", f"fine.model={model.folder}", "rois.threshold=0.5"]

    def warnings(settings: Sequence[str]) -> tuple[str, ...]:
        return Pipeline.from_config(load_config(None, [*names, *settings]))(volume).report.warnings

    thin = [text for text in warnings([]) if "thinner than a patch" in text]
    assert len(thin) == 1
    assert "neither canvases nor the rule or agent of assign.agent took part" in thin[0]
    assert not any("thinner than a patch" in text for text in warnings(["mode=two-stage"]))
    assert "5 region(s)" in (Tally(unpacked=2) + Tally(unpacked=3)).warnings[0]
    assert Tally(selected=3).warnings == ()


@pytest.mark.parametrize(
    "shape", [(3, 40, 72), *(pytest.param(shape, marks=pytest.mark.long) for shape in ((40, 3, 72), (40, 72, 1)))]
)
def test_segment_cells__thin_volume_in_one_cell__gives_what_the_file_gives(
    shape: tuple[int, int, int], model: Model, model_folder: Callable[..., Path]
) -> None:
    """Regions are those of two-stage mode, and seen on the same tiles, when the volume is read by region."""
    coarse = model_folder(spacing=(2.0, 2.0, 2.0), seed=5)
    pipeline = pipeline_of((coarse, model.folder), ["rois.threshold=0.52", "canvas.norm=canvas", "fine.tile_step=1"])
    image = blobs(tuple(edge + 4 for edge in shape))[2:-2, 2:-2, 2:-2] + np.int16(1)
    whole, lattice = pipeline(Volume((image,), Grid(shape, SPACING), "thin")), plan_lattice(shape, shape, shape)
    ((_, cell),) = segment(pipeline, image, lattice, norm=settled(pipeline, image, lattice)).items()
    np.testing.assert_array_equal(cell.labels, whole.labels)
    assert whole.labels.any()
    assert cell.counts.network_inputs.count == whole.report.canvases.count
    assert cell.counts.warnings[0] in whole.report.warnings
