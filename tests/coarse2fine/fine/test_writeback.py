"""From crops' outputs to labels, against nnU-Net's export of the same outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import blobs
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from scipy import special

from canvas import Box, Placement
from coarse2fine.evaluation.masks import dice
from coarse2fine.fine.writeback import LabelWriter, export_labels
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model, nnunet_predictor
from coarse2fine.preprocessing.working_grid import WorkingView, open_view

SPACING = (2.5, 0.8, 1.3)
LABELS = {"background": 0, "a": 1, "b": 2}


@pytest.fixture(scope="module", params=["resampled", "transposed"])
def scene(request: pytest.FixtureRequest, model_folder: Callable[..., Path]) -> tuple[Model, WorkingView, np.ndarray]:
    """A model, its view of a volume, and made-up outputs on the whole working grid."""
    options = {"labels": LABELS} | ({"transpose": (1, 2, 0)} if request.param == "transposed" else {})
    model = load_model(model_folder(**options))
    view = open_view([blobs((20, 44, 38))], SPACING, model)
    coarse = np.random.default_rng(1).normal(size=(3, *(-(-edge // 4) for edge in view.shape)))
    smooth = coarse.repeat(4, 1).repeat(4, 2).repeat(4, 3)[:, : view.shape[0], : view.shape[1], : view.shape[2]]
    return model, view, smooth.astype(np.float32)


def exported_by_nnunet(model: Model, view: WorkingView, logits: np.ndarray) -> np.ndarray:
    """What nnU-Net makes of outputs on the whole working grid."""
    predictor = nnunet_predictor(model, tile_step=0.5, mirroring=False)
    properties = {
        "spacing": list(SPACING),
        "shape_before_cropping": view.full,
        "shape_after_cropping_and_before_resampling": view.crop.shape,
        "bbox_used_for_cropping": [list(edge) for edge in zip(view.crop.start, view.crop.stop, strict=True)],
    }
    manager = predictor.plans_manager
    return convert_predicted_logits_to_segmentation_with_correct_shape(
        logits.copy(),
        manager,
        predictor.configuration_manager,
        manager.get_label_manager(dict(model.dataset)),
        properties,
    )


def tensor(outputs: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(outputs), dtype=torch.float32)


def native(box: Box, source: Box) -> Placement:
    return Placement(0, box, source, Box.whole(source.shape))


def test_labels__one_crop_of_everything__equal_nnunets_export(scene: tuple[Model, WorkingView, np.ndarray]) -> None:
    """Resampled outputs, labels, uncropping and transposition are nnU-Net's."""
    model, view, logits = scene
    whole, writer = Box.whole(view.shape), LabelWriter(view, model)
    writer.expect([whole])
    writer.add(native(whole, whole), tensor(logits))
    assert (writer.finish() != exported_by_nnunet(model, view, logits)).mean() < 1e-3


def test_labels__crops_that_tile_the_volume__equal_nnunets_export(scene: tuple[Model, WorkingView, np.ndarray]) -> None:
    """Crops with context, side by side or overlapping, give what one crop of everything gives: no seams, no gaps."""
    model, view, logits = scene
    whole, writer = Box.whole(view.shape), LabelWriter(view, model)
    depth, height, width = view.shape
    boxes = [
        Box((0, 0, 0), (depth, 15, width)),
        Box((0, 15, 0), (depth, height, 20)),
        Box((0, 12, 20), (depth, height, width)),
    ]
    writer.expect(boxes)
    for box in boxes:
        source = box.grow((2, 3, 3)).clip(whole)
        writer.add(native(box, source), tensor(logits[(slice(None), *source.slices)]))
    assert (writer.finish() != exported_by_nnunet(model, view, logits)).mean() < 1e-3


@pytest.mark.parametrize("regions", [False, True])
def test_probabilities__overlapping_crops__are_of_the_weighted_mean(
    model_folder: Callable[..., Path], regions: bool
) -> None:
    """Softmax or sigmoids of outputs blended by their weights, however large these are; other labels are certain."""
    options: dict[str, Any] = {"labels": LABELS}
    if regions:
        options = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    model = load_model(model_folder(spacing=SPACING, **options))
    view, rng = open_view([np.ones((4, 20, 20), np.int16)], SPACING, model), np.random.default_rng(0)
    whole, heads = Box.whole(view.shape), model.labels.heads
    boxes = [Box((0, 0, 0), (4, 20, 12)), Box((0, 0, 8), (4, 20, 16))]
    writer = LabelWriter(view, model, probabilities=True)
    writer.labels[...] = np.array([0, 1, 2, 1], np.uint8).repeat(5)  # as if a coarse model had said so
    writer.expect(boxes)
    outputs = [rng.normal(size=(heads, *box.shape)).astype(np.float32) for box in boxes]
    total, weights = np.zeros((heads, *whole.shape)), np.zeros(whole.shape)
    for box, logits in zip(boxes, outputs, strict=True):
        writer.add(native(box, box), tensor(logits))
        z, y, x = (np.exp(-0.5 * ((np.arange(edge) - edge // 2) / (edge / 8)) ** 2) for edge in box.shape)
        weight = z[:, None, None] * y[:, None] * x
        total[(slice(None), *box.slices)] += weight * logits
        weights[box.slices] += weight
    labels, probabilities = writer.finish(), writer.probabilities()

    assert probabilities is not None
    mean = total[..., :16] / weights[..., :16]
    np.testing.assert_allclose(
        probabilities[..., :16], special.expit(mean) if regions else special.softmax(mean, 0), atol=1e-4
    )
    assert (labels[..., 16:] == 1).all()
    assert (probabilities[..., 16:] == np.array([1, 0] if regions else [0, 1, 0])[:, None, None, None]).all()
    if regions:
        expected = np.where(probabilities[1] > 0.5, 2, np.where(probabilities[0] > 0.5, 1, 0))
    else:
        expected = probabilities.argmax(0)
    assert (labels == expected).all()


def test_labels__outside_of_the_box__stay_background(scene: tuple[Model, WorkingView, np.ndarray]) -> None:
    """What the network says in the context around a box does not count."""
    model, view, logits = scene
    box = Box.of((2, 6, 6), (4, 10, 10)).clip(Box.whole(view.shape))
    writer = LabelWriter(view, model)
    writer.expect([box])
    source = box.grow((2, 6, 6)).clip(Box.whole(view.shape))
    writer.add(native(box, source), tensor(logits[(slice(None), *source.slices)]))
    inside = LabelWriter(view, model)
    inside.expect([box])
    inside.add(
        native(box, source),
        tensor(np.stack([-np.ones(source.shape), np.ones(source.shape), 0 * np.ones(source.shape)])),
    )
    counted = inside.finish() == 1
    result = writer.finish()
    expected = exported_by_nnunet(model, view, logits)
    assert (result[~counted] == 0).all()
    assert (result[counted] == expected[counted]).mean() > 0.99
    assert (expected[~counted] != 0).any()
    share = counted.sum() / np.prod(view.crop.shape)
    assert share == pytest.approx(box.volume / np.prod(view.shape), rel=0.35)


def test_labels__overlap__is_blended_and_not_overwritten(model_folder: Callable[..., Path]) -> None:
    """Where two crops disagree the one whose centre is nearer wins, whichever came last."""
    model = load_model(model_folder(spacing=SPACING))
    view = open_view([np.ones((16, 32, 32), np.int16)], SPACING, model)
    left, right = Box((0, 0, 0), (16, 32, 20)), Box((0, 0, 12), (16, 32, 32))

    def outputs(box: Box, label: int) -> np.ndarray:
        return np.stack([np.full(box.shape, float(label == 0)), np.full(box.shape, float(label == 1))]).astype(
            np.float32
        )

    results = []
    for order in ((left, right), (right, left)):
        writer = LabelWriter(view, model)
        writer.expect(order)
        for box in order:
            writer.add(native(box, box), tensor(outputs(box, int(box == left))))
        results.append(writer.finish())
    np.testing.assert_array_equal(*results)
    assert (results[0][..., :16] == 1).all()
    assert (results[0][..., 16:] == 0).all()


def test_labels__box_that_has_grown__are_written_at_once_where_nobody_else_is_expected(
    model_folder: Callable[..., Path],
) -> None:
    """Outputs are held no longer than a crop is announced that may change them, however far others have grown."""
    model = load_model(model_folder(spacing=SPACING))
    view = open_view([np.ones((48, 16, 16), np.int16)], SPACING, model)
    small, grown, last = (Box((start, 0, 0), (stop, 16, 16)) for start, stop in ((0, 8), (0, 36), (36, 48)))
    writer = LabelWriter(view, model)
    writer.expect([small, last])
    for box, counts, left in ((small, grown, 1), (last, last, 0)):
        source = box.hull(counts)
        outputs = np.stack([np.zeros(source.shape), np.ones(source.shape)])
        writer.add(native(box, source), tensor(outputs), counts)
        assert writer.blocks == left
    assert (writer.finish() == 1).all()


def test_labels__resized_crop__come_back_at_their_place(model_folder: Callable[..., Path]) -> None:
    """A box shown at half size is written back to where it was, at full size."""
    model = load_model(model_folder(spacing=SPACING))
    view = open_view([np.ones((16, 32, 32), np.int16)], SPACING, model)
    box = Box((0, 8, 8), (16, 24, 24))
    shown = np.zeros((2, 8, 8, 8), np.float32)
    shown[0], shown[1, 2:6, 2:6, 2:6] = 0.5, 1
    writer = LabelWriter(view, model)
    writer.expect([box])
    writer.add(Placement(0, box, box, Box.whole((8, 8, 8))), tensor(shown))
    expected = np.zeros((16, 32, 32), bool)
    expected[4:12, 12:20, 12:20] = True
    result = writer.finish() == 1
    # Linear interpolation rounds the corners off.
    assert dice(result, expected) > 0.97


def test_labels__many_classes__never_hold_classes_times_volume(model_folder: Callable[..., Path]) -> None:
    """With 40 classes over many small boxes, memory stays far below one output array of the whole volume."""
    labels = {"background": 0} | {f"organ {label}": label for label in range(1, 40)}
    model = load_model(model_folder(labels=labels, spacing=SPACING))
    view = open_view([np.ones((64, 192, 192), np.uint8)], SPACING, model)
    boxes = [
        Box.of((z, y, x), (16, 32, 32)) for z in range(0, 64, 16) for y in range(0, 192, 32) for x in range(0, 192, 32)
    ]
    writer = LabelWriter(view, model)
    writer.expect(boxes)
    outputs = np.random.default_rng(0).normal(size=(40, 16, 32, 32)).astype(np.float32)
    peak = 0
    for box in boxes:
        writer.add(native(box, box), tensor(outputs))
        peak = max(peak, writer.held)
    assert writer.held == 0, "what got its last crop is labels"
    result = writer.finish()
    np.testing.assert_array_equal(result[:16, :32, :32], outputs.argmax(0))
    # Float32 sums of four blocks' crops side by side, of 16 x 64 x 64 voxels; the writer's own count, as what is mapped
    # is in no heap.
    assert 0 < peak <= 4 * 41 * 16 * 64 * 64 * 4
    assert peak < 0.5 * 40 * result.size * 2  # half of nnU-Net's half-precision array


def test_labels__voxels_that_do_not_count__stay_as_they_are(model_folder: Callable[..., Path]) -> None:
    """Where a crop's outputs are not kept they leave the label alone, although they lie in the box."""
    model = load_model(model_folder(spacing=SPACING))
    view = open_view([np.ones((16, 32, 32), np.int16)], SPACING, model)
    box = Box.of((0, 8, 8), (8, 8, 8))
    outputs = np.stack([np.zeros(box.shape), np.ones(box.shape)]).astype(np.float32)
    keep = np.zeros(box.shape, bool)
    keep[:, :3] = True
    writer = LabelWriter(view, model)
    writer.expect([box])
    writer.add(native(box, box), tensor(outputs), keep=torch.from_numpy(keep))
    expected = np.zeros((16, 32, 32), bool)
    expected[0:8, 8:11, 8:16] = True
    np.testing.assert_array_equal(writer.finish() == 1, expected)


def test_labels__voxels_kept_by_less_than_half__do_not_count(model_folder: Callable[..., Path]) -> None:
    """In a crop shown at half size what is kept is interpolated; a voxel counts where most of it is kept."""
    model = load_model(model_folder(spacing=SPACING))
    view = open_view([np.ones((16, 32, 32), np.int16)], SPACING, model)
    box = Box((0, 8, 8), (16, 24, 24))
    outputs = np.stack([np.zeros((8, 8, 8)), np.ones((8, 8, 8))]).astype(np.float32)
    keep = np.zeros((8, 8, 8), bool)
    keep[:, :4] = True
    writer = LabelWriter(view, model)
    writer.expect([box])
    writer.add(Placement(0, box, box, Box.whole((8, 8, 8))), tensor(outputs), keep=torch.from_numpy(keep))
    expected = np.zeros((16, 32, 32), bool)
    expected[:, 8:16, 8:24] = True  # half of the box, and nothing of the voxel beyond it
    np.testing.assert_array_equal(writer.finish() == 1, expected)


@pytest.mark.parametrize(
    "window", [Box((1, 4, 5), (6, 20, 25)), Box((0, 0, 0), (4, 30, 9)), Box((3, 9, 12), (6, 12, 17))]
)
def test_labels__window__are_what_the_whole_volume_gets_there(
    window: Box, scene: tuple[Model, WorkingView, np.ndarray]
) -> None:
    """A writer of a part of the grid counts from the part's start, and writes the same labels."""
    model, view, logits = scene
    window = window.clip(Box.whole(view.shape))
    boxes = [Box((0, 3, 2), (5, 14, 16)), Box((2, 8, 10), (8, 30, 28))]
    results = []
    for seen in (view, view.within(window)):
        writer, start = LabelWriter(seen, model), seen.window.start
        moved = [box.clip(Box.whole(view.shape)).shift(-a for a in start) for box in boxes]
        writer.expect(moved)
        for box, outputs in zip(moved, (logits, logits[::-1]), strict=True):  # where they overlap, they disagree
            source = box.grow((2, 3, 3)).clip(Box.whole(view.shape).shift(-a for a in start))
            writer.add(native(box, source), tensor(outputs[(slice(None), *source.shift(start).slices)]))
        region = writer.region.shift(view.crop.start)
        results.append((writer.finish().transpose(model.transpose), region))
    (whole, _), (part, region) = results
    assert part.shape == region.shape
    assert 0 < region.volume < view.crop.volume
    np.testing.assert_array_equal(part, whole[region.slices])


@pytest.mark.parametrize("window", [Box((1, 4, 5), (6, 20, 25)), Box((3, 9, 12), (6, 12, 17))])
def test_export_labels__window__are_what_the_whole_volume_gets_there(
    window: Box, scene: tuple[Model, WorkingView, np.ndarray]
) -> None:
    """With a few voxels of outputs around it, a part is exported as if it had been cut out of the whole."""
    model, view, logits = scene
    window, half = window.clip(Box.whole(view.shape)), logits.astype(np.float16)
    whole, part = LabelWriter(view, model), LabelWriter(view.within(window), model)
    export_labels(whole, model, torch.from_numpy(half))
    held = window.grow((4, 4, 4)).clip(Box.whole(view.shape))
    export_labels(part, model, torch.from_numpy(half[(slice(None), *held.slices)]), held)
    np.testing.assert_array_equal(part.labels, whole.labels[part.region.slices])
    assert (whole.finish() != exported_by_nnunet(model, view, half.astype(np.float32))).mean() < 1e-3


def test_windows_side_by_side__share_out_the_volume(scene: tuple[Model, WorkingView, np.ndarray]) -> None:
    """Each voxel is written in the window that holds its centre, and in no other."""
    model, view, _ = scene
    depth, height, width = view.shape
    count = np.zeros(view.crop.shape, int)
    for y in ((0, 7), (7, 20), (20, height)):
        for x in ((0, 16), (16, width)):
            window = Box((0, y[0], x[0]), (depth, y[1], x[1]))
            count[LabelWriter(view.within(window), model).region.slices] += 1
    assert (count == 1).all()


def test_fill__box_that_is_partly_decided__changes_only_what_is_not(
    scene: tuple[Model, WorkingView, np.ndarray],
) -> None:
    """Labels of a crop stay, whether its blocks have been turned into labels or not; outside of the box nothing is."""
    model, view, logits = scene
    done, filled = Box.of((0, 0, 0), (12, 20, 20)), Box.of((4, 4, 4), (12, 30, 24))
    for settled in (True, False):
        alone, both = (LabelWriter(view, model, track=True) for _ in range(2))
        for writer in (alone, both):
            writer.expect([done] if settled else [done, done])
            writer.add(native(done, done), tensor(logits[(slice(None), *done.slices)]))
        place = both.native(filled)
        both.fill(filled, torch.full(place.shape, 7, dtype=torch.uint8))
        alone.finish(), both.finish()
        decided = np.zeros(both.labels.shape, bool)
        decided[both.native(done).slices] = True
        expected = alone.labels.copy()
        expected[place.slices][~decided[place.slices]] = 7
        np.testing.assert_array_equal(both.labels, expected)
        assert (expected == 7).any()
    with pytest.raises(ValueError, match="does not track"):
        LabelWriter(view, model).fill(filled, torch.zeros((1, 1, 1)))
