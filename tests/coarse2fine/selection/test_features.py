"""Features of regions against pooling by hand, from the coarse network's bottleneck and from the fine encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from math import ceil, floor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import blobs
from hypothesis import given, settings
from hypothesis import strategies as st

from assignnet import Roi, RoiTree
from canvas import Box, Triple
from coarse2fine.coarse.feature_map import BottleneckMap, encoder_of
from coarse2fine.coarse.heatmap import CoarseResult, CoarseStage, predict_heatmap
from coarse2fine.coarse.scene import Scene
from coarse2fine.config.schema import CoarseConfig
from coarse2fine.fine.inputs import input_reader
from coarse2fine.io.turn import Turn
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import WorkingView, open_view
from coarse2fine.selection.features import (
    FeatureSettings,
    Pooling,
    feature_card,
    feature_model_fingerprint,
    pool_boxes,
    tree_features,
)
from coarse2fine.system.timing import RunClock, Stage

SHAPE, SPACING = (20, 44, 42), (2.0, 1.0, 1.0)
CHANNELS = 8  # of the tiny models' deepest stage
REDUCE = {"max": np.max, "mean": np.mean}


@dataclasses.dataclass(frozen=True)
class Seen:
    """A volume that the coarse network has looked at."""

    coarse: CoarseResult
    view: WorkingView
    model: Model
    fine: Model

    @property
    def scene(self) -> Scene:
        return Scene(self.view, self.coarse)


def see(coarse: Model, fine: Model) -> Seen:
    image, config = (blobs(SHAPE),), CoarseConfig()
    view = open_view(image, SPACING, coarse)
    result = predict_heatmap(CoarseStage(coarse, fine, config, keep_features=True), view)
    return Seen(result, open_view(image, SPACING, fine), coarse, fine)


@pytest.fixture(scope="module")
def seen(model_folder: Callable[..., Path]) -> Seen:
    """A coarse and a fine model with different weights."""
    return see(load_model(model_folder(spacing=(4.0, 2.0, 2.0), seed=1)), load_model(model_folder(seed=2)))


def tree_of(volume: Triple) -> RoiTree:
    """A parent of two children, a region larger than a slot, one of a single voxel, and one in the last corner."""
    left, right = Roi(Box((2, 4, 4), (8, 12, 13)), 0.9, 9.0), Roi(Box((4, 8, 9), (9, 20, 20)), 0.8, 5.0)
    corner = Box(tuple(edge - 3 for edge in volume), volume)
    lone = [Roi(Box((0, 0, 0), (12, 30, 28)), 0.7, 3.0), Roi(Box((9, 30, 7), (10, 31, 8)), 0.6, 1.0)]
    lone.append(Roi(corner, 0.5, 1.0))
    parent = Roi(left.box.hull(right.box), 0.9, 12.0)
    return RoiTree((parent, *lone), ((left, right), *((roi,) for roi in lone)), volume)


def pooled_by_hand(kept: BottleneckMap, box: Box, grid: Triple, mode: str) -> np.ndarray:
    """The four cells of one box in exact fractions, one after the other, all channels of a cell together."""
    parts = []
    for upper in product((None,), (False, True), (False, True)):
        index = []
        for axis in range(3):
            low, high = Fraction(box.start[axis]), Fraction(box.stop[axis])
            middle = (low + high) / 2
            if upper[axis] is not None:
                low, high = (middle, high) if upper[axis] else (low, middle)
            scale = Fraction(kept.grid[axis], grid[axis])
            first, last = ((edge * scale - kept.origin[axis]) / kept.stride[axis] for edge in (low, high))
            cells = kept.values.shape[1 + axis]
            start = min(max(floor(first), 0), cells - 1)
            index.append(slice(start, min(max(ceil(last), start + 1), cells)))
        parts.append(REDUCE[mode](kept.values[(slice(None), *index)].astype(np.float64), axis=(1, 2, 3)))
    return np.concatenate(parts)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), mode=st.sampled_from(["max", "mean"]))
def test_pool_boxes__boxes_anywhere__equals_pooling_by_hand(data: st.DataObject, mode: Pooling) -> None:
    """Boxes of any size, some of them beyond the volume, on maps with any origin."""
    small = st.integers(1, 5)
    cells, stride = (data.draw(st.tuples(small, small, small)) for _ in range(2))
    grid = data.draw(st.tuples(*[st.integers(1, 30)] * 3))
    coarse = data.draw(st.tuples(*[st.integers(1, 20)] * 3))
    origin = data.draw(st.tuples(*[st.integers(-4, 4)] * 3))
    values = np.random.default_rng(0).normal(size=(3, *cells)).astype(np.float32)
    kept = BottleneckMap(values, stride, origin, coarse)
    boxes = [
        Box.of(data.draw(st.tuples(*[st.integers(-6, 34)] * 3)), data.draw(st.tuples(*[st.integers(1, 20)] * 3)))
        for _ in range(data.draw(st.integers(0, 5)))
    ]
    found = pool_boxes(kept, boxes, grid, mode)
    assert found.shape == (len(boxes), 12)
    assert found.dtype == np.float32
    for row, box in zip(found, boxes, strict=True):
        np.testing.assert_allclose(row, pooled_by_hand(kept, box, grid, mode), atol=1e-6)


def test_pool_boxes__turned_map_and_boxes__gives_the_same_numbers() -> None:
    """Pooling does not care how the axes lie in memory: with map and boxes turned alike, cells are the same places."""
    values = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    kept, grid = BottleneckMap(values, (2, 4, 4), (1, 0, -2), (9, 20, 22)), (18, 40, 33)
    box = Box((3, 5, 4), (11, 30, 30))
    plain = pool_boxes(kept, [box], grid, "max").reshape(4, 3)
    for flips, order in (((False, False, False), [0, 2, 1, 3]), ((True, False, True), [2, 0, 3, 1])):
        turn = Turn((0, 2, 1), flips)
        turned = pool_boxes(kept.turned(turn), [turn.box(box, grid)], turn.sizes(grid), "max").reshape(4, 3)
        np.testing.assert_array_equal(turned, plain[order])


@pytest.mark.parametrize("mode", ["max", "mean"])
def test_tree_features__source_coarse__has_a_row_for_every_node(seen: Seen, mode: Pooling) -> None:
    """Rows follow ``tree.rois``; the volume's features are mean and maximum over the whole map."""
    tree, kept = tree_of(seen.view.shape), seen.coarse.bottleneck
    assert kept is not None
    settings = FeatureSettings("coarse", pooling_mode=mode, global_info=True)
    found = tree_features(settings, tree, seen.scene, seen.fine, (8, 16, 16))
    expected = [pooled_by_hand(kept, roi.box, seen.view.shape, mode) for roi in tree.rois]
    np.testing.assert_allclose(found.nodes, expected, atol=1e-6)
    assert len(np.unique(found.nodes, axis=0)) > 3
    values = kept.values.reshape(CHANNELS, -1)
    np.testing.assert_allclose(found.volume, [*values.mean(1), *values.max(1)], atol=1e-6)
    assert settings.size(seen.model, seen.fine) == (found.nodes.shape[1], len(found.volume)) == (32, 16)


@pytest.mark.parametrize("mode", ["center", "resize"])
@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize("slot", [(4, 8, 12), (7, 11, 10)], ids=["divisible", "not divisible"])
def test_tree_features__source_fine__equals_the_encoder_crop_by_crop(
    seen: Seen, mode: str, pooling: Pooling, slot: Triple
) -> None:
    """Each region by a pass of its own: what is read is the slot around it or the shrunk box, pooled in quarters."""
    tree, clock = tree_of(seen.view.shape), RunClock()
    size = tuple(-(-a // b) * b for a, b in zip(slot, (2, 4, 4), strict=True))
    settings = FeatureSettings("fine", mode, pooling, global_info=True)  # type: ignore[arg-type]
    found = tree_features(settings, tree, seen.scene, seen.fine, slot, clock)
    expected = []
    for roi in tree.rois:
        start, stop = [], []
        for low, high, edge, limit in zip(roi.box.start, roi.box.stop, size, seen.view.shape, strict=True):
            if mode == "resize" and high - low > edge:
                start, stop = [*start, low], [*stop, high]
            else:
                first = min(max((low + high - edge) // 2, 0), limit - edge)
                start, stop = [*start, first], [*stop, first + edge]
        data = seen.view.read(Box(tuple(start), tuple(stop)), size)
        with torch.inference_mode():
            deep = encoder_of(seen.fine)(data[None])[-1][0].numpy()
        _, y, x = deep.shape[1:]
        rows, columns = (slice(0, -(-y // 2)), slice(y // 2, y)), (slice(0, -(-x // 2)), slice(x // 2, x))
        expected.append([REDUCE[pooling](deep[:, :, r, c], axis=(1, 2, 3)) for r in rows for c in columns])
    np.testing.assert_allclose(found.nodes, np.reshape(expected, (len(tree.rois), 32)), atol=1e-4)
    np.testing.assert_allclose(found.volume[:CHANNELS], np.mean(expected, axis=(0, 1)), atol=1e-4)
    np.testing.assert_allclose(found.volume[CHANNELS:], np.max(expected, axis=(0, 1)), atol=1e-4)
    assert clock.seconds[Stage.ASSIGN.passes] > 0


def test_tree_features__fine_model_is_a_cascade__shows_it_the_coarse_labels(
    seen: Seen, model_folder: Callable[..., Path]
) -> None:
    """The encoder of a cascade gets its further channels, as in the fine stage."""
    fine = load_model(model_folder(cascade=True, seed=3))
    box = Box((4, 8, 8), (8, 16, 16))
    tree = RoiTree((Roi(box, 0.5, 1.0),), ((Roi(box, 0.5, 1.0),),), seen.view.shape)
    found = tree_features(FeatureSettings("fine"), tree, seen.scene, fine, box.shape)
    data = input_reader(seen.view, seen.coarse)(box, box.shape)
    assert data[1].any()
    with torch.inference_mode():
        deep = encoder_of(fine)(data[None])[-1][0].numpy()
    np.testing.assert_allclose(found.nodes[0], deep.max(axis=1).transpose(1, 2, 0).reshape(-1), atol=1e-4)


def test_tree_features__models_with_other_axes__see_the_same_places(model_folder: Callable[..., Path]) -> None:
    """A region's features come from the map voxels over that region, however coarse and fine model turn their axes."""
    of_coarse, of_fine = (1, 2, 0), (2, 0, 1)
    coarse = load_model(
        model_folder(patch=(16, 16, 8), spacing=[2 * SPACING[axis] for axis in of_coarse], transpose=of_coarse)
    )
    fine = load_model(model_folder(spacing=[SPACING[axis] for axis in of_fine], transpose=of_fine))
    turned = see(coarse, fine)
    kept = turned.coarse.bottleneck
    assert kept is not None
    assert kept.grid == turned.coarse.heatmap.shape
    # A map whose first channel is the voxel's place along the file's z tells where a region looks.
    axis = of_fine.index(0)
    place = np.broadcast_to(
        np.arange(kept.values.shape[1 + axis], dtype=np.float32).reshape([-1 if a == axis else 1 for a in range(3)]),
        kept.values.shape[1:],
    )
    marked = dataclasses.replace(turned.coarse, bottleneck=dataclasses.replace(kept, values=place[None]))
    volume = turned.view.shape
    for z in range(0, volume[axis] - 1, 3):
        start = [z if a == axis else 0 for a in range(3)]
        stop = [z + 1 if a == axis else edge for a, edge in enumerate(volume)]
        roi = Roi(Box(tuple(start), tuple(stop)), 0.5, 1.0)
        tree = RoiTree((roi,), ((roi,),), volume)
        nodes = tree_features(FeatureSettings(), tree, Scene(turned.view, marked), fine, (8, 16, 16)).nodes
        coarse_z = z * turned.coarse.heatmap.shape[axis] / volume[axis]
        assert nodes.max() == pytest.approx(coarse_z / kept.stride[axis], abs=1.01)


def test_tree_features__no_regions__are_empty_but_have_their_width(seen: Seen) -> None:
    """An empty tree has no rows, and no source has no columns."""
    empty = RoiTree((), (), seen.view.shape)
    for source, width in (("coarse", 32), ("fine", 32), ("none", 0)):
        settings = FeatureSettings(source, global_info=True)  # type: ignore[arg-type]
        found = tree_features(settings, empty, seen.scene, seen.fine, (8, 16, 16))
        assert found.nodes.shape == (0, width)
        assert len(found.volume) == settings.size(seen.model, seen.fine)[1] == width // 2
    assert tree_features(
        FeatureSettings("none"), tree_of(seen.view.shape), seen.scene, seen.fine, (8, 16, 16)
    ).nodes.shape == (6, 0)


def test_tree_features__bottleneck_was_not_kept__is_refused(seen: Seen) -> None:
    """Features that nobody recorded are an error, not zeros."""
    without = dataclasses.replace(seen.coarse, bottleneck=None)
    with pytest.raises(ValueError, match="without keeping its bottleneck"):
        tree_features(FeatureSettings(), tree_of(seen.view.shape), Scene(seen.view, without), seen.fine, (8, 16, 16))


@pytest.mark.parametrize(
    "wrong", [{"source": "both"}, {"downsample_mode": "zoom"}, {"pooling_mode": "sum"}, {"global_info": 1}], ids=str
)
def test_feature_settings__unknown_value__is_refused(wrong: dict) -> None:
    """Cards of agents come from strangers."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FeatureSettings(**wrong)


def test_fingerprint__weights__is_equal_for_equal_ones_only(model_folder: Callable[..., Path]) -> None:
    """It depends on every weight of the first network, and on nothing else, such as where the model lies."""
    folder = model_folder(folds=("0", "1"), seed=4)
    both, first = load_model(folder), load_model(folder, folds=("0",))
    again = load_model(model_folder(folds=("0",), seed=4))
    other = load_model(model_folder(folds=("0",), seed=5))
    prints = [feature_model_fingerprint(model) for model in (both, first, again, other)]
    assert prints[0] == prints[1] == prints[2] != prints[3]
    assert len(prints[0]) == 64
    for weight in again.networks[0].parameters():
        with torch.no_grad():
            weight.view(-1)[-1] += 1
        assert feature_model_fingerprint(again) not in prints
        prints.append(feature_model_fingerprint(again))


def test_feature_card__any_source__names_the_model_it_looks_through(seen: Seen) -> None:
    """The settings by name, and the fingerprint of the model whose encoder is asked."""
    card = feature_card(FeatureSettings("fine", "resize", "mean", True), seen.model, seen.fine)
    assert card == {
        "source": "fine",
        "downsample_mode": "resize",
        "pooling_mode": "mean",
        "global_info": True,
        "fingerprint": feature_model_fingerprint(seen.fine),
        "foreground": None,
    }
    assert feature_card(FeatureSettings(), seen.model, seen.fine)["fingerprint"] != card["fingerprint"]
    assert feature_card(FeatureSettings("none"), seen.model, seen.fine)["fingerprint"] is None
