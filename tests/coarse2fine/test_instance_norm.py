"""What each choice of normalisation statistics promises, on a real (tiny) network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from canvas import Box, Canvas, Placement
from coarse2fine.instance_norm import SlotLayout, SlotNorm, with_frozen_statistics, with_slot_statistics
from coarse2fine.nnunet import Model, load_model

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


def crops(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 1, 8, 16, 16)).astype(np.float32))


def beside(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.cat([left, right], dim=-1)


def test_canvas_norm__bright_neighbour__changes_a_crops_result(model: Model) -> None:
    """Plain InstanceNorm: far from the common border a crop's result still depends on its neighbour."""
    crop = crops(0)
    calm = model.forward(beside(crop, crops(1)), mirroring=False)
    loud = model.forward(beside(crop, 20 + 9 * crops(1)), mirroring=False)
    assert (calm[CORE] - loud[CORE]).abs().max() > 0.05


def test_slot_norm__feature_map_at_half_size__normalises_each_slot_by_itself() -> None:
    """On any feature map a layer gives each slot what InstanceNorm gives that slot alone."""
    layout, norm = SlotLayout(), nn.InstanceNorm3d(3, affine=True)
    layout.show(CANVAS)
    features = torch.randn(1, 3, 4, 8, 16) * torch.linspace(1, 9, 16)
    result = SlotNorm(norm, layout)(features)
    torch.testing.assert_close(result[..., :8], norm(features[..., :8]))
    torch.testing.assert_close(result[..., 8:], norm(features[..., 8:]))
    assert (result - norm(features)).abs().max() > 0.1


def test_slot_norm__one_slot_as_large_as_the_canvas__equals_plain(model: Model) -> None:
    """A single slot's statistics are the canvas' statistics."""
    slotwise, layout = with_slot_statistics(model)
    whole = Box.whole((8, 16, 16))
    layout.show(Canvas((8, 16, 16), (1, 1, 1), (Placement(0, whole, whole, whole),)))
    torch.testing.assert_close(slotwise.forward(crops(0), mirroring=False), model.forward(crops(0), mirroring=False))


def test_slot_norm__mirrored_passes__use_mirrored_slots(model: Model) -> None:
    """Averaging over mirrored inputs equals mirroring by hand with the slots mirrored too."""
    slotwise, layout = with_slot_statistics(model)
    lone = Canvas((8, 16, 32), (1, 1, 2), CANVAS.placements[:1])
    mirrored = Canvas((8, 16, 32), (1, 1, 2), (Placement(0, Box.whole(RIGHT.shape), Box.whole(RIGHT.shape), RIGHT),))
    batch = beside(crops(0), torch.zeros_like(crops(0)))
    layout.show(lone)
    averaged = slotwise.forward(batch, mirroring=True, on_flip=layout.flip)
    by_hand = torch.zeros_like(averaged)
    flips = [(), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)]
    for flip in flips:
        layout.show(mirrored if 4 in flip else lone)
        by_hand += torch.flip(slotwise.forward(torch.flip(batch, flip), mirroring=False), flip)
    torch.testing.assert_close(averaged, by_hand / len(flips))


def test_frozen_norm__tile_it_was_measured_on__equals_plain(model: Model) -> None:
    """Statistics measured on one tile reproduce the plain network on that tile."""
    frozen = with_frozen_statistics(model, [crops(0)])
    torch.testing.assert_close(
        frozen.forward(crops(0), mirroring=False), model.forward(crops(0), mirroring=False), atol=1e-4, rtol=1e-4
    )


def test_frozen_norm__any_neighbour__leaves_a_crop_alone(model: Model) -> None:
    """Away from the border a crop's result does not depend on what else is on the canvas, nor on the canvas' size."""
    frozen = with_frozen_statistics(model, [crops(0), crops(1)])
    crop = crops(2)
    alone = frozen.forward(crop, mirroring=False)
    loud = frozen.forward(beside(crop, 20 + 9 * crops(1)), mirroring=False)
    far = (..., slice(None), slice(None), slice(0, 2))
    torch.testing.assert_close(alone[far], loud[far], atol=1e-4, rtol=1e-4)
    assert (model.forward(crop, mirroring=False)[far] - alone[far]).abs().max() > 1e-3


def test_with_frozen_statistics__original_model__is_untouched(model: Model) -> None:
    """The plain model can go on to be used, as the comparison with nnU-Net does."""
    before = model.forward(crops(0), mirroring=False)
    with_frozen_statistics(model, [crops(3) * 5])
    with_slot_statistics(model)
    torch.testing.assert_close(model.forward(crops(0), mirroring=False), before)


def test_with_frozen_statistics__weights__are_shared(model: Model) -> None:
    """A model with other statistics costs no second set of weights."""
    frozen = with_frozen_statistics(model, [crops(0)])
    weights = {weight.data_ptr() for weight in model.networks[0].parameters()}
    assert {weight.data_ptr() for weight in frozen.networks[0].parameters()} == weights
