"""The fine stage: order of canvases, inputs of cascades, growth and what others cover."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import blobs
from large_volumes import bright_pipeline
from torch.nn import functional as F

from canvas import Box, Canvas, Triple, share_of_volume
from coarse2fine.coarse.heatmap import CoarseStage, predict_heatmap
from coarse2fine.coarse.scene import Scene
from coarse2fine.config.reader import load_config
from coarse2fine.fine.canvases import better_alone, count_tiles, plan_canvases
from coarse2fine.fine.inputs import input_reader, measure_case, norm_tiles
from coarse2fine.fine.sizes import plan_sizes
from coarse2fine.fine.writeback import LabelWriter
from coarse2fine.io import Grid, Volume
from coarse2fine.nnunet.instance_norm import measure_statistics
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.pipeline import Result
from coarse2fine.preprocessing.working_grid import open_view
from coarse2fine.system.timing import RunClock

SPACING = (2.0, 1.0, 1.0)  # the tiny models' own
ORGANS = {"background": 0} | {f"organ {label}": label for label in range(1, 17)}


@pytest.fixture(scope="module")
def organs(model_folder: Callable[..., Path]) -> Model:
    """A model of 17 classes."""
    return load_model(model_folder(labels=ORGANS, patch=(16, 64, 64)))


def peak_of(model: Model, canvases: list[Canvas], shape: tuple[int, int, int]) -> int:
    """Most bytes that a writer holds if crops come in the order of the canvases."""
    writer = LabelWriter(open_view([np.ones(shape, np.uint8)], SPACING, model), model)
    writer.expect(placement.box for canvas in canvases for placement in canvas.placements)
    peak = 0
    for canvas in canvases:
        for placement in canvas.placements:
            writer.add(placement, torch.zeros((model.labels.heads, *placement.slot.shape)))
            peak = max(peak, writer.held)
    assert writer.held == 0
    return peak


@pytest.mark.long
def test_plan_canvases__17_classes_and_many_boxes__sums_of_outputs_are_dropped_soon(organs: Model) -> None:
    """Outputs of a small part of the volume exist at once, far fewer than if canvases ran by their size."""
    random, shape = np.random.default_rng(0), (48, 320, 320)
    boxes = []
    for _ in range(120):
        edges = random.integers((3, 8, 8), (12, 48, 48))
        boxes.append(Box.of(random.integers(0, np.array(shape) - edges), edges))
    config = load_config(None, [])
    canvases = plan_canvases(boxes, config, plan_sizes(config, organs), shape)
    sizes = [prod(canvas.shape) for canvas in canvases]
    assert sizes[0] == max(sizes), "memory of the first feature maps serves for all others"
    peak = peak_of(organs, canvases, shape)
    by_size = sorted(canvases, key=lambda canvas: prod(canvas.shape), reverse=True)
    assert peak < 0.8 * peak_of(organs, by_size, shape)
    assert peak < 0.6 * 17 * prod(shape) * 4


@pytest.mark.parametrize("packing", ["same_scale", "same_size"])
def test_plan_canvases__no_boxes__no_canvases(packing: str, organs: Model) -> None:
    """Nothing was found, and nothing is run."""
    config = load_config(None, [f"canvas.packing={packing}"])
    assert plan_canvases([], config, plan_sizes(config, organs), (48, 320, 320)) == []


BAR = (slice(6, 9), slice(14, 17), slice(4, 90))
"""An object whose one end the coarse network sees; the fine one sees all of it."""


def run_along_bar(model_folder: Callable[..., Path], settings: list[str]) -> Result:
    image = np.zeros((16, 32, 96), np.float32)
    image[BAR] = 1.5
    image[BAR][..., :6] = 3
    folder = model_folder(scheme="NoNormalization", patch=(16, 32, 32))
    wanted = ["fine.grow=20", "fine.grow_step=[2, 8, 8]", "fine.large_boxes=native", "canvas.norm=canvas", *settings]
    pipeline = bright_pipeline(folder, wanted, coarse=2.0, fine=1.0)
    image[0, 0, 0] = image[-1, -1, -1] = 0.1  # so that nothing is cropped
    return pipeline(Volume((image,), Grid(image.shape, SPACING), "bar"))


def test_segment_boxes__mask_runs_on__is_followed_to_its_end_and_never_back(model_folder: Callable[..., Path]) -> None:
    """Each round goes on where the last one ended: what is finished is not looked at again."""
    result = run_along_bar(model_folder, ["fine.grow_above=0"])
    expected = np.zeros(result.labels.shape, np.uint8)
    expected[BAR] = 1
    np.testing.assert_array_equal(result.labels, expected)
    assert result.report.boxes.grown >= 3
    assert result.report.boxes.cut == 0
    for number, box in enumerate(result.boxes):
        finished = share_of_volume(result.boxes[:number], result.labels.shape)
        both = share_of_volume(result.boxes[: number + 1], result.labels.shape)
        assert (both - finished) * prod(result.labels.shape) > 0.5 * box.volume


def test_segment_boxes__heatmap_below_grow_above__mask_is_cut_and_counted(model_folder: Callable[..., Path]) -> None:
    """Where the coarse network is sure that nothing is, masks are not followed, and the report says so."""
    result = run_along_bar(model_folder, ["fine.grow_above=0.5"])
    assert result.report.boxes.grown == 0
    assert result.report.boxes.cut >= 1
    assert result.labels[BAR][..., :6].all()
    assert not result.labels[..., 60:].any()


@pytest.mark.parametrize("shape", [(4, 10, 8), (8, 7, 16), (8, 20, 16)])
def test_input_reader__cascade_resized__labels_lie_where_the_image_does(
    shape: tuple[int, int, int], model_folder: Callable[..., Path]
) -> None:
    """A resized crop's labels are the nearest ones, as PyTorch finds them, in the channels after the image's."""
    coarse = load_model(model_folder(labels=ORGANS, seed=5))
    view = open_view([blobs((16, 40, 40))], SPACING, coarse)
    prior = predict_heatmap(CoarseStage(coarse, coarse, load_config(None, []).coarse), view)
    box, read = Box.of((2, 5, 7), (8, 20, 16)), input_reader(view, prior)
    labels = prior.one_hot(box, view.shape)
    expected = F.interpolate(labels[None], shape, mode="nearest-exact")[0].numpy()
    result = read(box, shape)
    np.testing.assert_array_equal(result[1:], expected)
    np.testing.assert_array_equal(result[:1], view.read(box, shape))
    assert len(np.unique(expected.argmax(0))) > 2


@pytest.mark.parametrize(
    ("settings", "boxes", "volume", "measured", "alone"),
    [
        # The patch is 8 x 16 x 16: a sliding window has 8 tiles along 72 voxels, and 15 along 128.
        ([], 1, (8, 16, 72), True, True),
        ([], 2, (8, 16, 72), True, False),
        ([], 1, (8, 16, 64), True, False),
        ([], 2, (8, 16, 136), True, True),
        # Eight slots fill a canvas, and one tile is measured: two passes.
        (["canvas.packing=same_size"], 2, (8, 16, 72), False, True),
        (["canvas.packing=same_size"], 3, (8, 16, 72), False, False),
        (["canvas.packing=same_size"], 2, (8, 16, 72), True, False),
        (["canvas.packing=same_size", "canvas.norm=slot"], 1, (8, 16, 72), False, False),
        (["fine.large_boxes=native"], 1, (8, 16, 72), False, False),
        (["fine.postprocess=resize_only"], 1, (8, 16, 72), False, False),
    ],
)
def test_better_alone__few_boxes__where_that_costs_no_more(
    settings: list[str], boxes: int, volume: Triple, measured: bool, alone: bool, model_folder: Callable[..., Path]
) -> None:
    """Where a sliding window would cost eight times as much, or measuring costs what packing saves."""
    config = load_config(None, ["canvas.norm_tiles=1", *settings])
    plan = plan_sizes(config, load_model(model_folder()))
    some = [Box.of((2, 2, 5 * number), (2, 4, 4)) for number in range(boxes)]
    assert better_alone(some, config, plan, volume, measured=measured) == alone
    assert count_tiles((8, 16, 72), (8, 16, 16), 0.5) == 8


def test_norm_tiles__any_order_of_boxes__are_patches_around_some_of_them(model_folder: Callable[..., Path]) -> None:
    """Spread over space, the first and the last included, inside of the volume; no more than there are boxes."""
    model, volume = load_model(model_folder()), (16, 40, 200)
    config = load_config(None, ["canvas.norm_tiles=3"])
    plan = plan_sizes(config, model)
    boxes = [Box.of((4, 20, x), (2, 4, 4)) for x in range(0, 196, 20)]
    tiles = norm_tiles(boxes, config, plan, model, volume)
    assert tiles == norm_tiles(boxes[::-1], config, plan, model, volume)
    assert {tile.shape for tile in tiles} == {model.patch}
    assert all(Box.whole(volume).contains(tile) for tile in tiles)
    held = [[box for box in boxes if tile.contains(box)] for tile in tiles]
    assert all(held)
    assert boxes[0] in held[0] + held[-1]
    assert boxes[-1] in held[0] + held[-1]
    assert len(norm_tiles(boxes[:2], config, plan, model, volume)) == 2


def test_measure_case__cascade__sees_coarse_labels_beside_the_image(model_folder: Callable[..., Path]) -> None:
    """The statistics are those of image and labels of the tiles, stacked by hand; other labels give others."""
    coarse, cascade = load_model(model_folder(seed=5)), load_model(model_folder(cascade=True, seed=7))
    view = open_view([blobs((16, 40, 40))], SPACING, cascade)
    prior = predict_heatmap(CoarseStage(coarse, coarse, load_config(None, []).coarse), view)
    tiles = [Box.of((2, 4, 6), cascade.patch), Box.of((6, 20, 20), cascade.patch)]
    inputs = [torch.cat([view.read(tile, tile.shape), prior.one_hot(tile, view.whole)]) for tile in tiles]
    assert 0 < torch.stack(inputs)[:, 1].mean() < 1
    measured = measure_case(Scene(view, prior), cascade, tiles, RunClock()).to_json()
    assert measured == measure_statistics(cascade, inputs).to_json()
    inputs[0][1] = 1 - inputs[0][1]
    assert measured != measure_statistics(cascade, inputs).to_json()
