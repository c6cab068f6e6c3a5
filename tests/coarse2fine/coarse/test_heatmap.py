"""The coarse stage: the body crop, what lies outside of it, and looking up places of finer grids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import blobs
from hypothesis import given, settings
from hypothesis import strategies as st
from random_boxes import boxes_in
from scipy.ndimage import find_objects, label
from torch.nn import functional as F

from canvas import Box, Triple
from coarse2fine.coarse.heatmap import CoarseResult, CoarseStage, body_box, paint_coarse, predict_heatmap
from coarse2fine.config.reader import load_config
from coarse2fine.config.schema import BodyCrop
from coarse2fine.large.window import outwards
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.nnunet.sliding_window import sliding_window
from coarse2fine.preprocessing.working_grid import open_view
from coarse2fine.regions.search_grid import Place

SPACING = (2.0, 1.0, 1.0)
REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}


@pytest.fixture(scope="module")
def model(model_folder: Callable[..., Path]) -> Model:
    return load_model(model_folder())


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("margin", [0.0, 3.0, 5.0])
def test_body_box__margin__is_kept_around_the_largest_bright_object(step: int, margin: float, model: Model) -> None:
    """In millimetres, rounded up to voxels of the coarse grid; smaller objects do not count."""
    image = np.ones((24, 40, 44), np.int16)
    image[8:16, 12:24, 16:28] = image[2:4, 36:38, 2:4] = 100
    view = open_view([image], SPACING, model, [edge * step for edge in SPACING])
    names, _ = label(image[step // 2 :: step, step // 2 :: step, step // 2 :: step] > 50)
    largest = find_objects(names)[np.bincount(names.ravel())[1:].argmax()]
    sides = [int(np.ceil(margin / (edge * step))) for edge in SPACING]
    expected = Box(tuple(s.start for s in largest), tuple(s.stop for s in largest)).grow(sides)
    assert body_box(view, BodyCrop(above=50, margin_mm=margin)) == expected


@pytest.mark.parametrize("options", [{}, REGIONS], ids=["classes", "regions"])
def test_predict_heatmap__outside_of_the_body__is_certain_background(
    options: dict[str, object], model_folder: Callable[..., Path]
) -> None:
    """Whatever the labels; inside of the body are the outputs of a sliding window over it."""
    coarse = load_model(model_folder(**options))
    image = blobs((16, 32, 32))
    image[:, 20:] = image[:2] = 1
    view = open_view([image], SPACING, coarse)
    crop = {"above": 40.0, "margin_mm": 1.0}
    config = load_config(None, [f"coarse.body_crop={crop}"]).coarse
    result = predict_heatmap(CoarseStage(coarse, coarse, config), view)
    body = body_box(view, BodyCrop(**crop))
    inside = np.zeros(view.shape, bool)
    inside[body.slices] = True
    assert 0 < inside.mean() < 0.9
    assert result.heatmap[~inside].max() < 1e-6
    assert not coarse.labels.from_logits(result.logits)[~inside].any()
    expected = sliding_window(coarse, view.read(body), tile_step=config.tile_step, mirroring=config.mirroring).float()
    np.testing.assert_allclose(result.logits[(slice(None), *body.slices)], expected.numpy(), atol=2e-3)
    assert result.heatmap[inside].max() > 0.3


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_peak_in__any_box_of_a_finer_grid__is_the_highest_of_all_voxels_it_touches(
    model: Model, data: st.DataObject
) -> None:
    """Also where only a part of the coarse grid is held; 0 where the box touches nothing of it."""
    whole = data.draw(st.tuples(*[st.integers(1, 6)] * 3))
    grid = tuple(data.draw(st.integers(edge, 4 * edge)) for edge in whole)
    held, box = data.draw(boxes_in(whole)), data.draw(boxes_in(grid))
    start, shape = held.start, held.shape
    heatmap = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(np.float32) + 1
    coarse = CoarseResult(torch.zeros((2, *shape)), heatmap, model, None, Place(start, whole))
    touched = [
        float(heatmap[index])
        for index in np.ndindex(shape)
        if all(
            (i + s) * g < b * w and (i + s + 1) * g > a * w
            for i, s, g, w, a, b in zip(index, start, grid, whole, box.start, box.stop, strict=True)
        )
    ]
    assert coarse.peak_in(box, grid) == max(touched, default=0.0)


def result_of(shape: Triple, model: Model, seed: int = 0) -> CoarseResult:
    """Random outputs of two classes, mostly background."""
    logits = np.random.default_rng(seed).normal(0, 1, (2, *shape)).astype(np.float32)
    logits[0] += 0.8
    return CoarseResult(torch.from_numpy(logits), np.zeros(shape, np.float32), model)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_labels_in__any_box_of_a_finer_grid__are_those_of_pytorchs_interpolation(
    model: Model, data: st.DataObject
) -> None:
    """Whether all of the coarse grid is held, or only a part that shows the box and a voxel around it."""
    shape = data.draw(st.tuples(*[st.integers(3, 7)] * 3))
    grid = tuple(data.draw(st.integers(edge, 3 * edge)) for edge in shape)
    box = data.draw(boxes_in(grid))
    whole = result_of(shape, model)
    outputs = F.interpolate(whole.outputs[None], grid, mode="trilinear")[0][(slice(None), *box.slices)]
    clear = (outputs[1] - outputs[0]).abs().numpy() > 1e-4
    expected = (outputs[1] > outputs[0]).numpy()
    part = outwards(box, grid, shape).grow((1, 1, 1)).clip(Box.whole(shape))
    for coarse in (whole, whole.part(part)):
        found = coarse.labels_in(box, grid)
        np.testing.assert_array_equal(found[clear], expected[clear])
        around = box.grow((2, 1, 3))
        np.testing.assert_array_equal(coarse.one_hot(around, grid)[(0, *box.relative_to(around).slices)], found)


def test_labels_in__beyond_what_is_held__repeat_the_outermost_voxels(model: Model) -> None:
    """As if the coarse grid ended there."""
    whole, grid = result_of((4, 6, 6), model), (4, 12, 12)
    part = whole.part(Box((0, 1, 2), (4, 4, 5)))
    alone = CoarseResult(part.logits, part.heatmap, model)
    found = part.labels_in(Box((0, 0, 0), grid), grid)
    held = alone.labels_in(Box((0, 0, 0), (4, 6, 6)), (4, 6, 6))
    np.testing.assert_array_equal(found[:, 2:8, 4:10], held)
    np.testing.assert_array_equal(found, np.pad(held, ((0, 0), (2, 4), (4, 2)), mode="edge"))
    channels = part.one_hot(Box((-1, 0, 0), grid), grid)[0]
    assert not channels[0].any()
    outside = np.ones((4, 12, 12), bool)
    outside[:, 2:8, 4:10] = False
    np.testing.assert_array_equal(channels[1:] > 0, (found > 0) & ~outside)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_paint_coarse__any_outputs__paints_what_the_whole_grid_shows(model: Model, data: st.DataObject) -> None:
    """Only a box is interpolated, in slabs; it holds all foreground, and little more."""
    shape = (data.draw(st.integers(2, 12)), 7, 8)
    spots = np.full((2, *shape), -2.0, np.float32)
    spots[0] = 1
    spots[(1, *data.draw(boxes_in(shape)).slices)] = 3
    grid = (shape[0] * 3, 16, 9)
    coarse = CoarseResult(torch.from_numpy(spots), np.zeros(shape, np.float32), model)
    expected = coarse.labels_in(Box.whole(grid), grid)
    labels = np.zeros(grid, np.uint8)
    paint_coarse(coarse, labels)
    np.testing.assert_array_equal(labels, expected)
    region = Box((1, 3, 2), (grid[0], 12, 9))
    inside = np.zeros(region.shape, np.uint8)
    paint_coarse(coarse, inside, region, grid)
    np.testing.assert_array_equal(inside, expected[region.slices])
    box = coarse.foreground_box(grid)
    found = np.argwhere(spots[1] > spots[0])
    ratio = np.divide(grid, shape)
    assert (box.start >= np.floor((found.min(0) - 2) * ratio)).all()
    assert (box.stop <= np.ceil((found.max(0) + 3) * ratio)).all()


def test_paint_coarse__foreground_beside_the_region__leaves_background(model: Model) -> None:
    """A window may share slices with foreground, but no column."""
    outputs = np.zeros((2, 4, 8, 8), np.float32)
    outputs[0], outputs[1, :, :2, :2] = 1, 3
    coarse = CoarseResult(torch.from_numpy(outputs), np.zeros((4, 8, 8), np.float32), model)
    region = Box((0, 16, 16), (8, 24, 32))
    labels = np.zeros(region.shape, np.uint8)
    paint_coarse(coarse, labels, region, (8, 32, 32))
    assert not labels.any()


def test_paint_coarse__nothing_found__leaves_background(model: Model) -> None:
    """There is no box of foreground then."""
    outputs = np.zeros((2, 3, 4, 5), np.float32)
    outputs[0] = 1
    coarse, labels = (
        CoarseResult(torch.from_numpy(outputs), np.zeros((3, 4, 5), np.float32), model),
        np.zeros((6, 8, 10), np.uint8),
    )
    paint_coarse(coarse, labels)
    assert not labels.any()
    assert coarse.foreground_box((6, 8, 10)).volume == 0
