"""Other ways to choose where the fine network looks, on tiny real models; real data are never run here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import benchmark_module, blobs
from hypothesis import given, settings
from hypothesis import strategies as st

from canvas import Box, Triple, share_of_volume
from coarse2fine.coarse.heatmap import CoarseResult, CoarseStage, predict_heatmap
from coarse2fine.config.reader import load_config
from coarse2fine.config.schema import Config
from coarse2fine.errors import ModelError
from coarse2fine.io import Grid, Volume
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model, gaussian, tile_starts
from coarse2fine.pipeline import Pipeline
from coarse2fine.preprocessing.working_grid import WorkingView, open_view, view_volume

SPACING, SHAPE = (2.0, 1.0, 1.0), (18, 33, 34)
# What is left without the zero border: there nnU-Net and MONAI place tiles of 8 x 16 x 16 alike.
CROPPED, OFFSET = (16, 32, 32), (2, 1, 0)
ALL_TILES = 27
KINDS: dict[str, dict[str, Any]] = {
    "binary": {},
    "multi-class": {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}, "seed": 9},
    "regions": {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2], "seed": 9},
    "three-folds": {"folds": ("0", "1", "2")},
    "two-channels": {"channels": 2},
    "cascade": {"cascade": True},
    "transposed": {"transpose": (1, 2, 0), "spacing": (1.0, 1.0, 2.0), "patch": (16, 16, 8)},
    "larger-patch-than-volume": {"patch": (32, 64, 64)},
    "patch-larger-along-one-axis": {"patch": (20, 16, 16)},
    "resampled": {"spacing": (3.0, 1.5, 1.5)},
}


script = benchmark_module("rows.alternatives")


@pytest.fixture(scope="module")
def fine(model_folder: Callable[..., Path]) -> Model:
    """A fine model of two classes, whose outputs vary from voxel to voxel."""
    return load_model(model_folder(seed=6))


def scene(script: ModuleType, model: Model, heatmap: np.ndarray, **changes: Any) -> Any:
    """A scene over the blobs with a made-up heatmap, of which the coarse labels are those of the first class."""
    logits = np.full((model.labels.heads, *heatmap.shape), -20.0, np.float32)
    if not model.labels.regions:
        logits[0] = 0
    with np.errstate(divide="ignore"):
        odds = np.clip(np.log(heatmap / (1 - heatmap)), -20, 20)
    logits[0 if model.labels.regions else 1] = odds
    coarse = CoarseResult(torch.from_numpy(logits), heatmap.astype(np.float32), model)
    view = open_view([blobs(SHAPE, seed=seed) for seed in range(model.channels)], SPACING, model)
    return script.Given(view, model, coarse, **{"threshold": 0.5, "tile_step": 0.5, "mirroring": False} | changes)


def corner() -> np.ndarray:
    """A heatmap with one object in the first corner, on a grid half as fine as the working grid."""
    heatmap = np.zeros((8, 16, 16), np.float32)
    heatmap[:2, :3, 1:4] = 0.9
    return heatmap


def counted(model: Model) -> tuple[Model, list[int]]:
    """The model, and a list that grows by one with every pass through one of its networks, lean copies included."""
    passes: list[int] = []

    def hook(*_: Any) -> None:  # copying a network copies its hooks, but not what a function refers to
        passes.append(1)

    copies = load_model(model.folder, folds=model.folds)
    for network in copies.networks:
        network.register_forward_hook(hook)
    return copies, passes


def one_stage(model: Model, coarse: Model | None = None, mirroring: bool = False) -> np.ndarray:
    """What nnU-Net's sliding window over everything gives."""
    options = ["mode=one-stage", f"fine.mirroring={mirroring}", *(["fine.use_prior=true"] if model.cascade else [])]
    return Pipeline(load_config(None, options), coarse, model)(volume(model)).labels


def volume(model: Model) -> Volume:
    channels = tuple(blobs(SHAPE, seed=seed) for seed in range(model.channels))
    return Volume(channels, Grid(SHAPE, SPACING), "blobs")


def looked(case: Volume, config: Config, coarse: Model, fine: Model) -> CoarseResult:
    return predict_heatmap(CoarseStage(coarse, fine, config.coarse), view_volume(case, coarse))


def everywhere(script: ModuleType, model: Model, coarse: Model, mirroring: bool = False) -> Any:
    """A scene as the pipeline would see it, with a threshold below every value of the heatmap."""
    options = ["fine.use_prior=true"] if model.cascade else []
    case = volume(model)
    look = looked(case, load_config(None, options), coarse, model)
    assert look.heatmap.min() > 0
    return script.Given(open_view(case.channels, SPACING, model), model, look, 0.0, 0.5, mirroring)


def inner(labels: np.ndarray) -> np.ndarray:
    """Labels without the zero border of the volume."""
    return labels[tuple(slice(start, start + size) for start, size in zip(OFFSET, CROPPED, strict=True))]


def enlarged(heatmap: np.ndarray) -> np.ndarray:
    """A heatmap on the working grid, whose voxels are half as long."""
    return heatmap.repeat(2, 0).repeat(2, 1).repeat(2, 2)


def covered(tiles: set[Box]) -> np.ndarray:
    """Voxels of the working grid in at least one tile."""
    result = np.zeros(CROPPED, bool)
    for tile in tiles:
        result[tile.slices] = True
    return result


def alone(model: Model, view: WorkingView, tile: Box) -> np.ndarray:
    """What the network says of one tile."""
    logits = model.forward(view.read(tile)[None], mirroring=False)
    return model.labels.from_logits(logits[0]).numpy()


def coarse_labels(scene: Any) -> np.ndarray:
    """What the coarse network says of the working grid."""
    return scene.coarse.labels_in(Box.whole(CROPPED), CROPPED).numpy()


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_methods__nothing_is_skipped__agree_with_one_stage(
    kind: str, script: ModuleType, model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every tile is looked at, all methods are nnU-Net's sliding window, but for ties that rounding breaks.

    MONAI's own Gaussian lies half a voxel beside nnU-Net's, which on these tiny tiles breaks more of them.
    """
    options = KINDS[kind]
    shared = {name: options[name] for name in ("labels", "regions_class_order", "channels") if name in options}
    model, passes = counted(load_model(model_folder(**{"seed": 3} | options)))
    coarse = load_model(model_folder(**shared, spacing=(4.0, 2.0, 2.0), seed=5))
    start, expected = everywhere(script, model, coarse), one_stage(model, coarse)
    assert 0.02 < (expected != 0).mean() < 0.98
    tiles = len(list(tile_starts(np.maximum(start.view.shape, model.patch), model.patch, 0.5)))

    def check(look: Callable[[Any], Any], agreement: float) -> None:
        passes.clear()
        found = look(start)
        assert found.labels.dtype == expected.dtype
        assert (found.labels == expected).mean() >= agreement
        assert len(passes) == found.tiles * len(model.networks) == tiles * len(model.networks)
        assert found.network_s > 0

    # Blending before resampling, as one-stage does it, or after it, as the writer does, is not quite the same.
    least = 0.998 if kind == "resampled" else 0.999
    check(script.masked_tiles, 0.97)
    monkeypatch.setattr(
        "monai.inferers.utils.compute_importance_map", lambda size, **_: gaussian(size, torch.device("cpu")).float()
    )
    check(script.masked_tiles, 0.999)
    check(script.crop_foreground, least)
    check(lambda scene: script.centre_windows(scene, least=0), least)
    check(lambda scene: script.top_patches(scene, count=tiles), least)


@pytest.mark.parametrize("mirroring", [False, True])
@pytest.mark.parametrize("name", ["crop_foreground", "masked_tiles", "centre_windows", "top_patches"])
def test_methods__object_in_a_corner__passes_as_reported(
    name: str, mirroring: bool, script: ModuleType, fine: Model
) -> None:
    """With default settings the network runs once for each reported tile, eight times if it mirrors all axes."""
    model, passes = counted(fine)
    found = script.METHODS[name](scene(script, model, corner(), mirroring=mirroring))
    assert found.labels.shape == SHAPE
    assert 0 < found.tiles <= ALL_TILES
    assert len(passes) == found.tiles * (8 if mirroring else 1)
    if name in ("masked_tiles", "top_patches"):  # 20 units of margin reach far here, and the others need no heatmap
        assert found.tiles < ALL_TILES


def test_methods__assigned_to__refuse(script: ModuleType) -> None:
    """The table of methods cannot be changed."""
    assert len(script.METHODS) == 6
    with pytest.raises(TypeError):
        script.METHODS["another"] = script.masked_tiles


def test_crop_foreground__object_in_a_corner__one_padded_tile(script: ModuleType, fine: Model) -> None:
    """A crop smaller than a tile is shown alone, surrounded by zeros, and everything outside of it is background."""
    start = scene(script, fine, corner())
    # The object covers 0-4, 0-6, 2-8; the margin of 2.9 is one voxel of 2 and two voxels of 1.
    box = Box((0, 0, 0), (5, 8, 10))
    shown = start.view.read(box)
    data = np.pad(shown, ((0, 0), (1, 2), (4, 4), (3, 3)))
    logits = fine.forward(torch.from_numpy(data)[None], mirroring=False)[0]
    expected = np.zeros(CROPPED, np.uint8)
    expected[box.slices] = fine.labels.from_logits(logits).numpy()[1:6, 4:12, 3:13]
    found = script.crop_foreground(start, margin=2.9)
    assert found.tiles == 1
    assert expected.any()
    np.testing.assert_array_equal(inner(found.labels), expected)


def test_crop_foreground__larger_margin__more_tiles(script: ModuleType, fine: Model) -> None:
    """The margin reaches the crop: 5 voxels of 2 and 10 of 1 make it 9 x 16 x 18, which takes 2 x 1 x 2 tiles."""
    assert script.crop_foreground(scene(script, fine, corner()), margin=10).tiles == 4


@pytest.mark.parametrize("kind", ["binary", "multi-class", "regions"])
def test_masked_tiles__object_in_a_corner__others_are_background(
    kind: str, script: ModuleType, model_folder: Callable[..., Path]
) -> None:
    """Tiles that the mask touches are run; what they alone cover is as if all were, the rest is background."""
    model, passes = counted(load_model(model_folder(**{"seed": 9} | KINDS[kind])))
    start = scene(script, model, corner())
    mask = enlarged(start.coarse.heatmap) > 0.5
    tiles = [Box.of(corner, model.patch) for corner in tile_starts(CROPPED, model.patch, 0.5)]
    touched = {tile for tile in tiles if mask[tile.slices].any()}
    assert 0 < len(touched) < ALL_TILES
    found = script.masked_tiles(start)
    assert found.tiles == len(passes) == len(touched)
    everything = inner(script.masked_tiles(replace(start, threshold=-1.0)).labels)
    looked, skipped = covered(touched), covered(set(tiles) - touched)
    alone = looked & ~skipped
    assert alone.any()
    np.testing.assert_array_equal(inner(found.labels)[alone], everything[alone])
    assert everything[~looked].any()
    assert not inner(found.labels)[~looked].any()


def test_centre_windows__some_centres_too_empty__skips_their_neighbours(script: ModuleType, fine: Model) -> None:
    """At each height the middle one of nine windows decides whether the other eight are run; it has enough once."""
    model, passes = counted(fine)
    start = scene(script, model, corner())
    tiles = [Box.of(corner, model.patch) for corner in tile_starts(CROPPED, model.patch, 0.5)]
    centres = [tile for tile in tiles if tile.start[1:] == (8, 8)]
    counts = [np.count_nonzero(alone(fine, start.view, tile)) for tile in centres]
    assert len(set(counts)) == 3
    best = centres[int(np.argmax(counts))]
    skipped = {tile for tile in tiles if tile.start[0] != best.start[0]} - set(centres)
    passes.clear()
    found = script.centre_windows(start, least=max(counts))
    assert found.tiles == len(passes) == 3 + 8
    everything = inner(script.centre_windows(start, least=0).labels)
    np.testing.assert_array_equal(inner(found.labels)[~covered(skipped)], everything[~covered(skipped)])
    nowhere = ~covered(set(tiles) - skipped)
    assert everything[nowhere].any()
    assert not inner(found.labels)[nowhere].any()


def test_centre_windows__nothing_found__one_window_at_each_height(script: ModuleType, fine: Model) -> None:
    """A network that sees background everywhere is asked for the middle of each height only, whatever the heatmap."""
    model, passes = counted(fine)
    with torch.no_grad():
        for network in model.networks:
            network.decoder.seg_layers[-1].bias.copy_(torch.tensor([1000.0, 0.0]))
    found = script.centre_windows(scene(script, model, np.full((8, 16, 16), 0.9, np.float32)))
    assert found.tiles == len(passes) == 3
    assert not found.labels.any()


def test_central__even_and_odd_numbers_of_windows__middle_ones(script: ModuleType) -> None:
    """Of four rows the two in the middle are central, of three columns the one in the middle."""
    plane = [Box.of((5, y, x), (8, 16, 16)) for y in (0, 7, 15, 22) for x in (0, 8, 16)]
    assert script.central(plane) == {Box.of((5, y, 8), (8, 16, 16)) for y in (7, 15)}
    assert script.central(plane[:1]) == {plane[0]}


def test_top_patches__one_patch__coarse_labels_outside(script: ModuleType, fine: Model) -> None:
    """The patch with the most mass gets what the fine network says of it alone, all else keeps its coarse labels."""
    heatmap = corner()
    heatmap[5:8, 9:14, 8:16] = 0.7  # a larger object; its 0.7 is in no patch of the other
    heatmap[:4, 8:, :8] = 0.49  # more mass in one patch, but below the threshold
    model, passes = counted(fine)
    start = scene(script, model, heatmap)
    mass = np.where(enlarged(heatmap) > 0.5, enlarged(heatmap), 0)
    tiles = [Box.of(corner, model.patch) for corner in tile_starts(CROPPED, model.patch, 0.5)]
    best = max(tiles, key=lambda tile: mass[tile.slices].sum())
    expected = coarse_labels(start)
    assert expected.any()
    expected[best.slices] = alone(fine, start.view, best)
    passes.clear()
    found = script.top_patches(start, count=1)
    assert found.tiles == len(passes) == 1
    np.testing.assert_array_equal(inner(found.labels), expected)


def test_top_patches__no_count__fewest_that_hold_the_mass(script: ModuleType, fine: Model) -> None:
    """By default the ranking is followed until the patches' union holds 99 % of the mass above the threshold."""
    heatmap = np.random.default_rng(1).random((8, 16, 16)).astype(np.float32) ** 8
    start = scene(script, fine, heatmap)
    mass = np.where(enlarged(heatmap) > 0.5, enlarged(heatmap), 0).astype(np.float64)
    tiles = [Box.of(corner, fine.patch) for corner in tile_starts(CROPPED, fine.patch, 0.5)]
    ranking = sorted(tiles, key=lambda tile: -mass[tile.slices].sum())
    shares = [mass[covered(set(ranking[:count]))].sum() / mass.sum() for count in range(ALL_TILES + 1)]
    expected = next(count for count, share in enumerate(shares) if share >= 0.99)
    assert 0 < expected < ALL_TILES
    assert script.top_patches(start).tiles == expected


@pytest.mark.parametrize("name", ["crop_foreground", "masked_tiles", "top_patches"])
def test_methods__nothing_above_the_threshold__no_network_pass(name: str, script: ModuleType, fine: Model) -> None:
    """Without foreground the result is background, but that of top patches is the coarse one."""
    model, passes = counted(fine)
    start = scene(script, model, corner() * 0.7, threshold=0.8)
    found = script.METHODS[name](start)
    assert (found.tiles, found.network_s, len(passes)) == (0, 0.0, 0)
    assert coarse_labels(start).any()
    expected = coarse_labels(start) if name == "top_patches" else np.zeros(CROPPED)
    np.testing.assert_array_equal(inner(found.labels), expected)


@pytest.mark.parametrize(("name", "tiles"), [("coarse_only", 0), ("lean_window", ALL_TILES)])
def test_methods__two_ends__run_nothing_or_everything(name: str, tiles: int, script: ModuleType, fine: Model) -> None:
    """The coarse labels alone, and the sliding window with no tile left out."""
    model, passes = counted(fine)
    start = scene(script, model, corner())
    found = script.METHODS[name](start)
    assert found.tiles == len(passes) == tiles
    if name == "coarse_only":
        np.testing.assert_array_equal(inner(found.labels), coarse_labels(start))


def test_methods__coarse_model_of_other_labels__is_refused_where_its_labels_would_stand(
    script: ModuleType, fine: Model, model_folder: Callable[..., Path]
) -> None:
    """Methods that keep coarse labels say so; all others need its heatmap only."""
    other = load_model(model_folder(labels={"background": 0, "anything": 1}))
    start = scene(script, fine, corner())
    start = replace(start, coarse=replace(start.coarse, model=other))
    for name, method in script.METHODS.items():
        if name in ("coarse_only", "top_patches"):
            with pytest.raises(ModelError, match=r"coarse labels stand where no patch lies, but .* different labels"):
                method(start)
        elif name == "crop_foreground":
            assert method(start).tiles > 0


edges = st.tuples(*[st.integers(1, 12)] * 3)


@settings(deadline=None)
@given(edges, edges, edges, st.floats(0.2, 1))
def test_window_boxes__any_region__covers_it(
    script: ModuleType, start: Triple, shape: Triple, patch: Triple, step: float
) -> None:
    """Tiles are nnU-Net's, cover the region, and stick out of it only where it is shorter, evenly on both sides."""
    region = Box.of(start, shape)
    tiles = script.window_boxes(region, patch, step)
    assert len(tiles) == len(list(tile_starts(np.maximum(shape, patch), patch, step)))
    assert share_of_volume([tile.relative_to(region).clip(Box.whole(shape)) for tile in tiles], shape) == 1
    for tile in tiles:
        assert tile.shape == patch
        for low, high, first, last in zip(tile.start, tile.stop, region.start, region.stop, strict=True):
            assert first <= low < high <= last or 0 <= (high - last) - (first - low) <= 1


@settings(deadline=None)
@given(edges, edges, st.data())
def test_foreground_box__any_mask__holds_its_voxels(
    script: ModuleType, fine: Model, shape: Triple, grid: Triple, data: st.DataObject
) -> None:
    """The box is that of all working-grid voxels which a heatmap voxel above the threshold covers in part."""
    voxels = data.draw(st.lists(st.tuples(*[st.integers(0, edge - 1) for edge in shape]), max_size=3))
    heatmap = np.zeros(shape, np.float32)
    for voxel in voxels:
        heatmap[voxel] = 0.6
    bounds = [
        sorted(
            index
            for index in range(large)
            # The two half-open intervals, both multiplied by small, have something in common.
            if any(
                max(index * small, v[axis] * large) < min((index + 1) * small, (v[axis] + 1) * large) for v in voxels
            )
        )
        for axis, (small, large) in enumerate(zip(shape, grid, strict=True))
    ]
    expected = Box((0, 0, 0), (0, 0, 0))
    if voxels:
        expected = Box(tuple(found[0] for found in bounds), tuple(found[-1] + 1 for found in bounds))
    made = SimpleNamespace(coarse=SimpleNamespace(heatmap=heatmap), threshold=0.5, view=SimpleNamespace(shape=grid))
    assert script.foreground_box(made) == expected
