"""Jigsaws, against brute force."""

from __future__ import annotations

from itertools import permutations
from math import prod

import numpy as np
import pytest
import torch

from coarse2fine.errors import ConfigError
from coarse2fine.networks.features import encode
from coarse2fine.networks.vit import ViT, ViTShape
from coarse2fine.pretrain.borders import Border
from coarse2fine.pretrain.jigsaw import Cells, Jigsaw, distant_orders


def made(shape: tuple[int, ...], parts: tuple[int, ...], border: Border, orders: int = 5) -> tuple[ViT, Jigsaw]:
    network = ViT(ViTShape(2, shape, (4,) * len(shape), 24, 1, 2))
    return network, Jigsaw(network, shape, border, orders, 0, parts)


def distance(first: np.ndarray, second: tuple[int, ...]) -> int:
    return sum(a != b for a, b in zip(first, second, strict=True))


def test_distant_orders__chosen_one_by_one__are_as_far_from_earlier_ones_as_can_be() -> None:
    """All orders of five tiles are compared; five orders can differ everywhere."""
    orders, every = distant_orders(5, 12, seed=3), list(permutations(range(5)))
    for at in range(1, len(orders)):
        far = [min(distance(earlier, other) for earlier in orders[:at]) for other in every]
        assert min(distance(earlier, tuple(orders[at])) for earlier in orders[:at]) == max(far)
    assert min(distance(first, tuple(second)) for first, second in permutations(orders[:5], 2)) == 5
    assert np.array_equal(orders, distant_orders(5, 12, seed=3))
    assert not np.array_equal(orders, distant_orders(5, 12, seed=4))


def test_distant_orders__more_than_there_are__are_refused_and_the_remedy_works() -> None:
    """All that there are can be had, and each comes once."""
    with pytest.raises(ConfigError, match="7 orders of 3 tiles cannot be told apart") as raised:
        distant_orders(3, 7, seed=0)
    most = int(raised.value.remedy.rstrip(".").split()[-1])
    assert {tuple(order) for order in distant_orders(3, most, seed=0)} == set(permutations(range(3)))


@pytest.mark.parametrize(("shape", "parts"), [((24, 28), (3, 3)), ((12, 16, 12), (2, 2, 2))])
def test_views__tiles__come_from_their_cells_in_the_order_that_is_to_be_found(
    shape: tuple[int, ...], parts: tuple[int, ...]
) -> None:
    """Each is found, normalised, at one place of its cell and no other; what is between them is empty."""
    _, jigsaw = made(shape, parts, Border("none"))
    cells = jigsaw.cells
    images = torch.from_numpy(np.random.default_rng(0).normal(3, 2, (2, 2, *shape)).astype(np.float32))
    views = jigsaw.views({"images": images}, np.random.default_rng(5))
    spare = tuple(edge - tile for edge, tile in zip(cells.cell, cells.tile, strict=True))
    assert min(spare) > 0
    offsets = set()
    for image, puzzle, order in zip(images.numpy(), views["image"].numpy(), views["order"].tolist(), strict=True):
        for place, source in enumerate(jigsaw.orders[order]):
            tile = puzzle[:, *cells.slices(place, [more // 2 for more in spare])]
            places = []
            for offset in np.ndindex(*(more + 1 for more in spare)):
                part = image[:, *cells.slices(source, offset)]
                if np.allclose((part - part.mean()) / np.sqrt(part.var() + 1e-6), tile, atol=1e-4):
                    places.append(offset)
            assert len(places) == 1
            offsets.update(places)
        assert (puzzle != 0).sum() <= 2 * prod(parts) * prod(cells.tile)
    assert len(offsets) > 1


@pytest.mark.parametrize(("shape", "parts"), [((24, 24), (3, 3)), ((16, 16, 16), (2, 2, 2))])
def test_loss__any_dimension__is_of_a_linear_head_on_each_tiles_mean(
    shape: tuple[int, ...], parts: tuple[int, ...]
) -> None:
    """By hand from the features, where their grid is a multiple of the tiles."""
    network, jigsaw = made(shape, parts, Border("disc"))
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 2, *shape)).astype(np.float32))
    views = jigsaw.views({"images": images}, np.random.default_rng(5))
    features = encode(network, views["image"]).detach().numpy()
    step = features.shape[2] // parts[0]
    places = [tuple(slice(at * step, (at + 1) * step) for at in index) for index in np.ndindex(*parts)]
    means = np.stack([features[:, :, *place].reshape(3, 24, -1).mean(2) for place in places], 2).reshape(3, -1)
    logits = means @ jigsaw.head.weight.detach().numpy().T + jigsaw.head.bias.detach().numpy()
    right = logits[np.arange(3), views["order"].numpy()]
    expected = (np.log(np.exp(logits).sum(1)) - right).mean()
    assert jigsaw.loss(network, views).item() == pytest.approx(expected, rel=1e-4)


def test_cells__too_many_or_too_small__are_refused_and_the_remedies_work() -> None:
    """In one line each."""
    with pytest.raises(ConfigError, match="a jigsaw of 4 x 4 has 16 tiles") as raised:
        Cells((64, 64), (4, 4))
    assert "3 along each edge in 2D, 2 in 3D" in raised.value.remedy
    Cells((64, 64), (3, 3))
    Cells((64, 64, 64), (2, 2, 2))
    with pytest.raises(ConfigError, match="images of 8 x 40 are too small for 3 x 3 tiles") as raised:
        Cells((8, 40), (3, 3))
    edge = int(raised.value.remedy.rstrip(".").split()[-1])
    assert min(Cells((edge, edge), (3, 3)).tile) > 1
