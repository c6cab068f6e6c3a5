"""What each choice of normalisation statistics promises, and what lean networks do, on real (tiny) networks."""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn

from canvas import Box, Canvas, Placement
from coarse2fine.errors import ModelError
from coarse2fine.nnunet.cpu_layers import ChannelsLast, InPlaceNorm, lean
from coarse2fine.nnunet.instance_norm import (
    NormStatistics,
    SlotLayout,
    SlotNetwork,
    SlotNorm,
    mark_slots,
    measure_statistics,
    with_frozen_statistics,
    with_slot_statistics,
)
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model

LEFT, RIGHT = Box((0, 0, 0), (8, 16, 16)), Box((0, 0, 16), (8, 16, 32))
CANVAS = Canvas(
    (8, 16, 32),
    (1, 1, 2),
    tuple(
        Placement(index, Box.whole(slot.shape), Box.whole(slot.shape), slot) for index, slot in enumerate((LEFT, RIGHT))
    ),
)
# Farther from the slot's border than the network's 3x3x3 convolutions reach across it.
CORE = (..., slice(2, 6), slice(4, 12), slice(2, 4))


@pytest.fixture(scope="module")
def model(model_folder: Callable[..., Path]) -> Model:
    return load_model(model_folder())


@pytest.fixture(scope="module", params=["plain", "residual"])
def either(request: pytest.FixtureRequest, model: Model) -> Model:
    """A model of each of nnU-Net's architectures."""
    if request.param == "plain":
        return model
    torch.manual_seed(0)
    strides, norm = [1, 2, 2], {"eps": 1e-5, "affine": True}
    network = ResidualEncoderUNet(
        *(1, 3, [4, 8, 8], nn.Conv3d, 3, strides, [1, 2, 2], 2, 2, False),
        *(nn.InstanceNorm3d, norm, None, None, nn.LeakyReLU, {"inplace": True}),
    )
    return dataclasses.replace(model, networks=(network.eval().requires_grad_(False),))


def crops(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 1, 8, 16, 16)).astype(np.float32))


def beside(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.cat([left, right], dim=-1)


def with_marks(batch: torch.Tensor, canvas: Canvas) -> torch.Tensor:
    return torch.cat([batch, torch.from_numpy(mark_slots(canvas))[None, None]], dim=1)


def frozen_on(model: Model, *tiles: torch.Tensor) -> Model:
    """The model with the statistics of some inputs, each of shape (1, channels, z, y, x)."""
    return with_frozen_statistics(model, measure_statistics(model, [tile[0] for tile in tiles]))


def test_canvas_norm__bright_neighbour__changes_a_crops_result(model: Model) -> None:
    """Plain InstanceNorm: far from the common border a crop's result still depends on its neighbour."""
    crop = crops(0)
    calm = model.forward(beside(crop, crops(1)), mirroring=False)
    loud = model.forward(beside(crop, 20 + 9 * crops(1)), mirroring=False)
    assert (calm[CORE] - loud[CORE]).abs().max() > 0.05


def test_slot_norm__feature_map_at_half_size__normalises_each_slot_by_itself() -> None:
    """On any feature map a layer gives each slot what InstanceNorm gives that slot alone."""
    layout, norm = SlotLayout(), nn.InstanceNorm3d(3, affine=True)
    layout.show(torch.from_numpy(mark_slots(CANVAS)))
    features = torch.randn(1, 3, 4, 8, 16) * torch.linspace(1, 9, 16)
    result = SlotNorm(norm, layout)(features)
    torch.testing.assert_close(result[..., :8], norm(features[..., :8]))
    torch.testing.assert_close(result[..., 8:], norm(features[..., 8:]))
    assert (result - norm(features)).abs().max() > 0.1


def test_slot_norm__marks_of_an_input__are_where_its_slots_are(model: Model) -> None:
    """The last channel of an input is what layers go by: another slot, another result."""
    slotwise, batch, results = with_slot_statistics(model), beside(crops(0), 20 + 9 * crops(1)), []
    network = slotwise.networks[0]
    assert isinstance(network, SlotNetwork)
    for placement in CANVAS.placements:
        marks = mark_slots(Canvas(CANVAS.shape, (1, 1, 2), (placement,)))
        results.append(slotwise.forward(torch.cat([batch, torch.from_numpy(marks)[None, None]], 1), mirroring=False))
        network.layout.show(torch.from_numpy(marks))
        torch.testing.assert_close(results[-1], network.network(batch))
    assert (results[0] - results[1]).abs().max() > 0.1


def test_slot_norm__one_slot_as_large_as_the_canvas__equals_plain(model: Model) -> None:
    """A single slot's statistics are the canvas' statistics."""
    whole = Box.whole((8, 16, 16))
    batch = with_marks(crops(0), Canvas((8, 16, 16), (1, 1, 1), (Placement(0, whole, whole, whole),)))
    slotwise = with_slot_statistics(model).forward(batch, mirroring=False)
    torch.testing.assert_close(slotwise, model.forward(crops(0), mirroring=False))


def test_slot_norm__mirrored_passes__use_mirrored_slots(model: Model) -> None:
    """Averaging over mirrored inputs equals mirroring by hand with the slots mirrored too."""
    slotwise = with_slot_statistics(model)
    lone = Canvas((8, 16, 32), (1, 1, 2), CANVAS.placements[:1])
    mirrored = Canvas((8, 16, 32), (1, 1, 2), (Placement(0, Box.whole(RIGHT.shape), Box.whole(RIGHT.shape), RIGHT),))
    batch = beside(crops(0), torch.zeros_like(crops(0)))
    averaged = slotwise.forward(with_marks(batch, lone), mirroring=True)
    by_hand = torch.zeros_like(averaged)
    flips = [(), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)]
    for flip in flips:
        by = with_marks(torch.flip(batch, flip), mirrored if 4 in flip else lone)
        by_hand += torch.flip(slotwise.forward(by, mirroring=False), flip)
    torch.testing.assert_close(averaged, by_hand / len(flips))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_in_place_norm__million_voxels__exact_statistics_and_no_second_map(layout: torch.memory_format) -> None:
    """The input is overwritten with what double precision gives, however many voxels are summed up."""
    features = (10 + 3 * torch.randn(1, 3, 64, 128, 128)).contiguous(memory_format=layout)
    exact, norm = features.double(), nn.InstanceNorm3d(3, affine=True).eval()
    norm.weight.data, norm.bias.data = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
    layer, place = InPlaceNorm(norm), features.data_ptr()
    with torch.inference_mode():
        result = layer(features)
    assert result.data_ptr() == place
    torch.testing.assert_close(result.double(), norm.double()(exact), atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.seen[0].double(), exact.mean((0, 2, 3, 4)), atol=5e-6, rtol=0)
    torch.testing.assert_close(layer.seen[1].double(), exact.var((0, 2, 3, 4), correction=0), atol=2e-5, rtol=0)


def test_in_place_norm__two_inputs__each_by_its_own_statistics() -> None:
    """A batch of two gives what InstanceNorm3d gives."""
    norm, features = nn.InstanceNorm3d(3, affine=True), torch.randn(2, 3, 4, 5, 7)
    with torch.inference_mode():
        torch.testing.assert_close(InPlaceNorm(norm)(features.clone()), norm(features))


@pytest.mark.parametrize("mirroring", [False, True])
def test_lean__either_architecture__same_logits(either: Model, mirroring: bool) -> None:
    """The lean copy differs by rounding; the original still gives the same, bit for bit."""
    before = either.forward(crops(0), mirroring=mirroring)
    slim = lean(either).forward(crops(0), mirroring=mirroring)
    torch.testing.assert_close(slim, before, atol=1e-4, rtol=0)
    assert (slim.argmax(1) != before.argmax(1)).sum() <= 1  # a tie may fall either way
    assert slim.is_contiguous()
    assert torch.equal(either.forward(crops(0), mirroring=mirroring), before)


def test_lean__either_architecture__normalises_where_the_convolution_wrote(either: Model) -> None:
    """Every norm layer works on the memory of a convolution's output, which oneDNN left channels last."""
    network = lean(either).networks[0]
    written: set[int] = set()
    places: list[bool] = []
    for layer in network.modules():
        if isinstance(layer, ChannelsLast):
            layer.register_forward_hook(lambda layer, inputs, output: written.add(output.data_ptr()))
        if isinstance(layer, InPlaceNorm):
            layer.register_forward_hook(
                lambda layer, inputs, output: places.append(
                    output.data_ptr() in written and output.is_contiguous(memory_format=torch.channels_last_3d)
                )
            )
    lean_model = dataclasses.replace(either, networks=(network,))
    lean_model.forward(crops(0), mirroring=False)
    norms = sum(isinstance(layer, nn.InstanceNorm3d) for layer in either.networks[0].modules())
    assert len(places) == norms
    assert all(places)


def test_lean_decoder__next_layer__finds_used_feature_maps_gone(either: Model) -> None:
    """Concatenations live for one block only, and skips not until the end, unlike in nnU-Net's own decoder."""
    network = lean(either).networks[0]
    encoder, decoder = network.get_submodule("encoder"), network.get_submodule("decoder")
    maps: list[weakref.ref[torch.Tensor]] = []
    gone: list[bool] = []
    for stage in decoder.get_submodule("decoder.stages").children():
        first, *others = stage.get_submodule("convs").children()
        first.register_forward_hook(lambda layer, inputs, output: maps.insert(0, weakref.ref(inputs[0])))
        for block in others:
            block.register_forward_pre_hook(lambda layer, inputs: gone.append(maps[0]() is None))
    *_, head = decoder.get_submodule("decoder.seg_layers").children()
    head.register_forward_pre_hook(lambda layer, inputs: gone.extend(known() is None for known in maps))
    with torch.inference_mode():
        skips = encoder(crops(0))
        maps += [weakref.ref(skip) for skip in skips]
        decoder(skips)
    assert len(gone) >= 5  # three skips and two concatenations
    assert all(gone)


def test_lean__other_device__is_the_model_itself(model: Model) -> None:
    """What was measured on the CPU is done on the CPU."""
    elsewhere = dataclasses.replace(model, device=torch.device("meta"))
    assert lean(elsewhere) is elsewhere


def test_measure_statistics__two_tiles__has_the_statistics_of_both(either: Model) -> None:
    """Those of the first norm layer are mean and variance of what the first convolution makes of all tiles."""
    tiles = [crops(0), 3 + 2 * crops(1)]
    outputs: list[torch.Tensor] = []
    conv = next(layer for layer in either.networks[0].modules() if isinstance(layer, nn.Conv3d))
    mean, variance = torch.from_numpy(measure_statistics(either, [tile[0] for tile in tiles]).layers[0][0])
    handle = conv.register_forward_hook(lambda layer, inputs, output: outputs.append(output.clone()))
    for tile in tiles:
        either.forward(tile, mirroring=False)
    handle.remove()
    both = torch.cat(outputs).double()
    torch.testing.assert_close(mean.double(), both.mean((0, 2, 3, 4)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(variance.double(), both.var((0, 2, 3, 4), correction=0), atol=1e-5, rtol=1e-5)


def test_frozen_norm__tile_it_was_measured_on__equals_plain(either: Model) -> None:
    """Statistics measured on one tile reproduce the plain network on that tile."""
    frozen = frozen_on(either, crops(0))
    torch.testing.assert_close(
        frozen.forward(crops(0), mirroring=False), either.forward(crops(0), mirroring=False), atol=1e-4, rtol=1e-4
    )


def test_frozen_norm__any_neighbour__leaves_a_crop_alone(model: Model) -> None:
    """Away from the border a crop's result does not depend on what else is on the canvas, nor on the canvas' size."""
    frozen = frozen_on(model, crops(0), crops(1))
    crop = crops(2)
    alone = frozen.forward(crop, mirroring=False)
    loud = frozen.forward(beside(crop, 20 + 9 * crops(1)), mirroring=False)
    far = (..., slice(None), slice(None), slice(0, 2))
    torch.testing.assert_close(alone[far], loud[far], atol=1e-4, rtol=1e-4)
    assert (model.forward(crop, mirroring=False)[far] - alone[far]).abs().max() > 1e-3


def test_with_frozen_statistics__original_model__is_untouched(either: Model) -> None:
    """The plain model can go on to be used, as the comparison with nnU-Net does."""
    before = either.forward(crops(0), mirroring=False)
    frozen_on(either, crops(3) * 5)
    with_slot_statistics(either)
    torch.testing.assert_close(either.forward(crops(0), mirroring=False), before)


def test_with_frozen_statistics__weights__are_shared(either: Model) -> None:
    """A model with other statistics costs no second set of weights."""
    frozen = frozen_on(either, crops(0))
    weights = {weight.data_ptr() for weight in either.networks[0].parameters()}
    assert {weight.data_ptr() for weight in frozen.networks[0].parameters()} == weights


def test_measure_statistics__several_networks__each_by_its_own_passes(model_folder: Callable[..., Path]) -> None:
    """Every fold is frozen, to what it alone makes of the tiles: on one tile all of them give their plain outputs."""
    folds = load_model(model_folder(folds=("0", "1", "2")))
    frozen = frozen_on(folds, crops(0))
    for fold in range(3):
        plain = folds.forward(crops(0), mirroring=False, fold=fold)
        torch.testing.assert_close(frozen.forward(crops(0), mirroring=False, fold=fold), plain, atol=1e-4, rtol=1e-4)
        other = folds.forward(crops(1) * 3, mirroring=False, fold=fold)
        assert (frozen.forward(crops(1) * 3, mirroring=False, fold=fold) - other).abs().max() > 1e-2


def test_measure_statistics__inference_rounds__are_measured_with_the_same_rounding(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What inference does to its passes (half precision on GPUs; here whole numbers) is done to these passes too."""
    tile, forward = 9 * crops(0), Model.forward
    rounded = measure_statistics(model, [tile.round()[0]])

    def rounding(model: Model, batch: torch.Tensor, **options: Any) -> torch.Tensor:
        return forward(model, batch.round(), **options)

    monkeypatch.setattr(Model, "forward", rounding)
    for found, wanted in zip(measure_statistics(model, [tile[0]]).layers[0], rounded.layers[0], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_norm_statistics__through_json__are_the_same_bits(model: Model) -> None:
    """They can be stored and read back."""
    measured = measure_statistics(model, [crops(0)[0], crops(1)[0]])
    read = NormStatistics.from_json(json.loads(json.dumps(measured.to_json())))
    for before, after in zip(measured.layers[0], read.layers[0], strict=True):
        assert after.dtype == np.float32
        np.testing.assert_array_equal(before, after)


def test_with_frozen_statistics__another_models__are_refused(model: Model, model_folder: Callable[..., Path]) -> None:
    """Statistics of two folds do not fit one."""
    other = measure_statistics(load_model(model_folder(folds=("0", "1"))), [crops(0)[0]])
    with pytest.raises(ModelError, match=r"2 network\(s\)") as caught:
        with_frozen_statistics(model, other)
    assert caught.value.remedy.startswith("Measure them anew")
    with_frozen_statistics(model, measure_statistics(model, [crops(0)[0]]))
