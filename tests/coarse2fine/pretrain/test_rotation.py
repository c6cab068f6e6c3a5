"""Turns, against SciPy's group of them and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation as Turns
from torch.nn import functional as F

from coarse2fine.networks.features import pooled
from coarse2fine.networks.vit import ViT, ViTShape
from coarse2fine.pretrain.borders import Border
from coarse2fine.pretrain.rotation import Rotation, turns_of


@pytest.mark.parametrize(("shape", "count"), [((4, 4, 4), 24), ((4, 3, 4), 8), ((4, 4, 2), 8), ((4, 3, 2), 4)])
def test_turns_of__shape_in_3d__are_those_of_the_cube_that_keep_it(shape: tuple[int, ...], count: int) -> None:
    """Voxel by voxel, from SciPy's rotation matrices."""
    image = np.arange(np.prod(shape)).reshape(shape)
    middle = (np.array(shape) - 1) / 2
    expected = set()
    for matrix in Turns.create_group("O").as_matrix().round().astype(int):
        if (np.abs(matrix) @ shape == shape).all():
            moved = {tuple((matrix @ (np.array(at) - middle) + middle).astype(int)): at for at in np.ndindex(shape)}
            expected.add(tuple(image[moved[at]] for at in np.ndindex(shape)))
    found = [tuple(turn(torch.from_numpy(image)).ravel().tolist()) for turn in turns_of(shape)]
    assert len(found) == len(set(found)) == count
    assert set(found) == expected
    assert found[0] == tuple(image.ravel())


@pytest.mark.parametrize(("shape", "angles"), [((5, 5), range(4)), ((5, 3), (0, 2))])
def test_turns_of__shape_in_2d__are_those_of_numpy(shape: tuple[int, ...], angles: range) -> None:
    """Multiples of 90 degrees, of 180 if edges differ."""
    image = np.arange(np.prod(shape)).reshape(shape)
    found = {tuple(turn(torch.from_numpy(image)).ravel().tolist()) for turn in turns_of(shape)}
    assert found == {tuple(np.rot90(image, angle).ravel()) for angle in angles}


@pytest.mark.parametrize("shape", [(8, 8), (8, 4, 8)])
def test_views_and_loss__any_dimension__say_which_turn_each_image_has(shape: tuple[int, ...]) -> None:
    """The turn of that number makes the view of the image; the loss is PyTorch's of a linear head on pooled tokens."""
    network = ViT(ViTShape(2, shape, (4,) * len(shape), 24, 1, 2))
    rotation = Rotation(network, shape, Border("none"))
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(12, 2, *shape)).astype(np.float32))
    views = rotation.views({"images": images}, np.random.default_rng(1))
    for image, view, turn in zip(images, views["image"], views["turn"].tolist(), strict=True):
        assert torch.equal(view, rotation.turns[turn](image))
    assert len(set(views["turn"].tolist())) > 2
    logits = pooled(network, views["image"]) @ rotation.head.weight.T + rotation.head.bias
    expected = -F.log_softmax(logits, 1)[torch.arange(12), views["turn"]].mean()
    assert rotation.loss(network, views).item() == pytest.approx(expected.item(), rel=1e-5)
