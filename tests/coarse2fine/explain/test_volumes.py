"""Maps over volumes: tiles, folds, grids, and what is explained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from conftest import blobs
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from planted import write_spot_model
from torch.nn import functional as F

from canvas import Box
from coarse2fine.errors import ConfigError, ModelError
from coarse2fine.explain import volumes
from coarse2fine.explain.volumes import default_layer, explain_volume
from coarse2fine.io import Grid, Volume
from coarse2fine.nnunet.loading import load_model
from coarse2fine.preprocessing.working_grid import view_volume

ModelFolder = Callable[..., Path]
REGIONS = {"background": 0, "organ": [1, 2], "tumour": 2}


def volume_of(array: np.ndarray, spacing: tuple[float, float, float] = (2.0, 1.0, 1.0)) -> Volume[Any]:
    return Volume((array,), Grid(array.shape, spacing), "scan")


def with_object(shape: tuple[int, int, int], box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Noise within a border of 0, with a bright box; and where that is."""
    rng = np.random.default_rng(0)
    array, inside = rng.normal(100, 5, shape), np.zeros(shape, bool)
    inside[box.slices] = True
    array[inside] += 400
    array[:1], array[:, -2:], array[..., :1] = 0, 0, 0
    return array.astype(np.float32), inside


@pytest.mark.parametrize(
    "options",
    [
        {"folds": ("0", "1")},
        {"labels": REGIONS, "regions_class_order": [1, 2]},
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_explain_volume__several_tiles__equals_captum_blended_as_nnunet_does(
    model_folder: ModelFolder, options: dict[str, Any], masked: bool
) -> None:
    """Tile by tile with captum, nnU-Net's steps and weights; one division at the end, by the highest value of all."""
    model = load_model(model_folder(**options))
    label = "tumour" if model.labels.regions else "lesion"
    head, volume = model.labels.head_of[label], volume_of(blobs((12, 28, 30)))
    view = view_volume(volume, model)
    data = view.read(Box.whole(view.shape))[None]
    drawn = np.zeros(volume.grid.shape, bool)
    drawn[4:9, 8:20, 10:16] = True
    total, weights = torch.zeros(view.shape), torch.zeros(view.shape)
    gaussian = compute_gaussian(model.patch, 1 / 8, 10, device=torch.device("cpu")).float()
    given = torch.from_numpy(drawn[view.crop.slices].astype(np.float32))
    for corner in (
        (z, y, x)
        for steps in [compute_steps_for_sliding_window(view.shape, model.patch, 0.5)]
        for z in steps[0]
        for y in steps[1]
        for x in steps[2]
    ):
        here = Box.of(corner, model.patch).slices
        tile = data[(..., *here)]
        for network in model.networks:
            logits = network(tile)
            voxels = (logits[:, head] > 0 if model.labels.regions else logits.argmax(1) == head).float()
            voxels = given[here][None] if masked else voxels

            def summed(batch: torch.Tensor, network: Any = network, voxels: torch.Tensor = voxels) -> torch.Tensor:
                return (network(batch)[:, head] * voxels).flatten(1).sum(1)

            layer = network.encoder.stages[1]
            raw = LayerGradCam(summed, layer).attribute(tile.clone().requires_grad_(), relu_attributions=True)
            found = F.interpolate(raw.detach(), model.patch, mode="trilinear")[0, 0]
            total[here] += found * gaussian / len(model.networks)
        weights[here] += gaussian
    expected = np.zeros(volume.grid.shape, np.float32)
    expected[view.crop.slices] = (total / weights).numpy()
    steps: list[tuple[int, int]] = []
    result = explain_volume(
        model, volume, label, method="grad-cam", mask=drawn if masked else None, ticks=lambda *step: steps.append(step)
    )
    assert expected.max() > 0
    np.testing.assert_allclose(result.values, expected / expected.max(), atol=2e-3)  # nnU-Net's weights are halves
    assert result.values.max() == 1
    assert result.values.dtype == np.float32
    assert result.layer == "encoder.stages.1" == default_layer(model)
    assert steps[-1][0] == steps[-1][1] > 1
    assert not masked or np.array_equal(result.explained, drawn)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transpose": (1, 2, 0), "spacing": (1.0, 2.0, 1.5)},
        {"spacing": (4.0, 1.5, 0.7), "reader": "NibabelIOWithReorient"},
        {"patch": (16, 48, 48)},  # larger than the volume
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_explain_volume__planted_object__holds_map_and_maximum(
    tmp_path: Path, options: dict[str, Any], masked: bool
) -> None:
    """Whatever axes and voxel sizes the model works with, the map lies over the object in the volume's own voxels."""
    model = load_model(write_spot_model(tmp_path / "model", **options))
    array, inside = with_object((14, 40, 36), Box((5, 8, 20), (10, 20, 32)))
    result = explain_volume(model, volume_of(array), "lesion", mask=inside if masked else None)
    assert result.values.shape == array.shape
    assert inside.flatten()[result.values.argmax()]
    assert result.values[inside].sum() / result.values.sum() > 10 * inside.mean()
    overlap = 2 * (result.explained & inside).sum() / (result.explained.sum() + inside.sum())
    assert overlap == 1 if masked else overlap > 0.2
    assert not result.values[array == 0].any()
    assert not result.doubts


def test_explain_volume__several_objects__are_compared_across_tiles(tmp_path: Path) -> None:
    """A fainter one in another tile stays fainter: maps are divided once, not tile by tile."""
    model = load_model(write_spot_model(tmp_path / "model"))
    array, strong = with_object((8, 16, 80), Box((2, 4, 6), (6, 12, 14)))
    faint = np.zeros_like(strong)
    faint[2:6, 4:12, 66:74] = True
    array[faint] += 150
    values = explain_volume(model, volume_of(array), "lesion").values
    assert values[strong].max() == 1
    assert 0 < values[faint].max() < 0.9


def test_explain_volume__nothing_found__is_0_and_says_so(tmp_path: Path) -> None:
    """And what it names works: with voxels given there is something to explain."""
    model = load_model(write_spot_model(tmp_path / "model"))
    for network in model.networks:
        network.decoder.seg_layers[-1].bias[0] = 1e6  # background everywhere
    array, inside = with_object((8, 16, 16), Box((2, 4, 4), (6, 12, 12)))
    found = explain_volume(model, volume_of(array), "lesion")
    assert not found.values.any()
    assert not found.explained.any()
    assert "name voxels with --mask" in found.doubts[0]
    assert explain_volume(model, volume_of(array), "lesion", mask=inside).values.max() == 1


def test_explain_volume__layer_without_a_say__is_0_and_says_so(tmp_path: Path) -> None:
    """What speaks against a label is left out of the map."""
    model = load_model(write_spot_model(tmp_path / "model"))
    for network in model.networks:
        network.decoder.seg_layers[-1].bias[1] = -1e6
    array, inside = with_object((8, 16, 16), Box((2, 4, 4), (6, 12, 12)))
    layer = "decoder.seg_layers.1"
    found = explain_volume(model, volume_of(array), "lesion", layer=layer, mask=inside)
    assert not found.values.any()
    assert found.doubts == ("nothing in layer decoder.seg_layers.1 speaks for the label, and the map is 0 everywhere",)


def test_explain_volume__outputs_beyond_numbers__are_refused(tmp_path: Path) -> None:
    """Instead of a map of nothing."""
    model = load_model(write_spot_model(tmp_path / "model"))
    for network in model.networks:
        network.decoder.seg_layers[-1].weight.mul_(1e38)
    array, _ = with_object((8, 16, 16), Box((2, 4, 4), (6, 12, 12)))
    with pytest.raises(ModelError, match="too large to be explained"):
        explain_volume(model, volume_of(array), "lesion")


@pytest.mark.parametrize(
    ("options", "label", "layer", "problem", "remedy"),
    [
        ({}, "lesoin", None, "'lesoin' is no label that .*did you mean 'lesion'", "Name one of 'lesion'"),
        ({}, "background", None, "'background' is no label", "Name one of 'lesion'"),
        ({"labels": REGIONS, "regions_class_order": [1, 2]}, "x", None, "'x' is no", "'organ', 'tumour'"),
        ({}, "lesion", "encoder.stage.2", "no layer 'encoder.stage.2'", "encoder.stages.2"),
        ({"cascade": True}, "lesion", None, "is a cascade", "3d_lowres or 3d_fullres"),
    ],
)
def test_explain_volume__what_the_model_has_not__is_refused(
    model_folder: ModelFolder, options: dict[str, Any], label: str, layer: str | None, problem: str, remedy: str
) -> None:
    """A label, a layer, or images alone."""
    model = load_model(model_folder(**options))
    with pytest.raises((ConfigError, ModelError), match=problem) as error:
        explain_volume(model, volume_of(blobs((8, 16, 16))), label, layer=layer)
    assert remedy in error.value.remedy


def test_explain_volume__any__leaves_the_model_as_it_was(model_folder: ModelFolder) -> None:
    """Its outputs afterwards are the same, and nothing of it wants gradients."""
    model = load_model(model_folder())
    batch = torch.rand(1, 1, 8, 16, 16)
    before = model.forward(batch, mirroring=False)
    explain_volume(model, volume_of(blobs((8, 16, 16))), "lesion")
    assert torch.equal(model.forward(batch, mirroring=False), before)
    assert not any(parameter.requires_grad for network in model.networks for parameter in network.parameters())


def test_explain_volume__label_found_everywhere__is_explained_inside_of_the_volume_only(tmp_path: Path) -> None:
    """Where a tile is larger than the volume, what is found in its padding does not count."""
    model = load_model(write_spot_model(tmp_path / "model"))
    for network in model.networks:
        network.decoder.seg_layers[-1].bias[1] = 1e3
    array, _ = with_object((6, 12, 14), Box((2, 4, 4), (4, 10, 12)))
    array[array == 0] = 100
    found = explain_volume(model, volume_of(array), "lesion")
    assert found.explained.all()
    everywhere = explain_volume(model, volume_of(array), "lesion", mask=np.ones(array.shape, bool))
    np.testing.assert_allclose(found.values, everywhere.values, atol=1e-5)


def test_explain_volume__small_mask__passes_over_tiles_without_it(model_folder: ModelFolder) -> None:
    """The network sees tiles with explained voxels only; the others have no map."""
    model, passes = load_model(model_folder()), list[int]()
    array = np.maximum(blobs((8, 64, 16)), 1)
    mask = np.zeros(array.shape, bool)
    mask[3:5, 2:6, 4:9] = True
    model.networks[0].register_forward_hook(lambda _, given, __: passes.extend([1] * len(given[0])))
    found = explain_volume(model, volume_of(array), "lesion", mask=mask)
    touching = len(passes)
    explain_volume(model, volume_of(array), "lesion", mask=np.ones(array.shape, bool))
    assert 0 < touching < (len(passes) - touching) / 2
    assert found.values.max() == 1
    assert not found.values[:, 40:].any()


@pytest.mark.parametrize("flat", [False, True], ids=["3D", "2D"])
@pytest.mark.parametrize("masked", [False, True])
def test_explain_volume__tiles_that_pass_together__have_the_maps_of_single_ones(
    flat: bool, masked: bool, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pass holds more voxels than it may, whatever the size of the volume; an odd number of tiles is no matter."""
    options = {"patch": (16, 16), "spacing": (1.0, 1.0)} if flat else {}
    model = load_model(model_folder(folds=("0", "1"), **options), flat=flat)
    volume = volume_of(blobs((13, 28, 30)))
    mask = np.zeros(volume.grid.shape, bool)
    mask[3:9, 4:20, 2:12] = True
    counts: list[int] = []
    model.networks[0].register_forward_hook(lambda _, given, __: counts.append(len(given[0])))
    found = []
    for most in (1, 5, 1000):
        counts.clear()
        monkeypatch.setattr(volumes, "BATCH_VOXELS", most * int(np.prod(model.patch)))
        found.append(explain_volume(model, volume, "lesion", mask=mask if masked else None))
        assert max(counts) <= most
        assert (most == 1) == (max(counts) == 1)
    for one in found[1:]:
        np.testing.assert_allclose(one.values, found[0].values, atol=1e-5)
        assert np.array_equal(one.explained, found[0].explained)
    assert found[0].values.any()
