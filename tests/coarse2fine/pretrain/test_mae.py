"""The loss of masked autoencoding, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from coarse2fine.pretrain.blocks import Blocks
from coarse2fine.pretrain.mae import MaskedAutoencoding
from coarse2fine.pretrain.masking import Masking
from coarse2fine.pretrain.objective import Method

PATCHES = [(10, 12), (8, 10, 12)]


def objective(patch: tuple[int, ...], **options: bool) -> MaskedAutoencoding:
    return MaskedAutoencoding(Masking(Blocks.of(patch, 4)), **options)


def batch(patch: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(3, 2, (2, 2, *patch)).astype(np.float32))


def scaled(image: torch.Tensor) -> torch.Tensor:
    """A network."""
    return 2 * image + 0.5


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("everywhere", [False, True])
def test_loss__any_option__is_the_mean_over_blocks_by_brute_force(
    patch: tuple[int, ...], normalised: bool, everywhere: bool
) -> None:
    """Block by block, with NumPy in double precision, in 2D and 3D."""
    mae, images = objective(patch, normalised=normalised, everywhere=everywhere), batch(patch)
    views = mae.views({"images": images}, np.random.default_rng(5))
    hidden = views["hidden"].numpy()[:, 0]
    slices = [
        [slice(end - edge, end) for edge, end in zip(edges, np.cumsum(edges), strict=True)]
        for edges in mae.masking.blocks.edges
    ]
    squares = []
    for image, holes in zip(images.numpy().astype(float), hidden, strict=True):
        for index in np.ndindex(*mae.masking.blocks.shape):
            part = tuple(axis[at] for axis, at in zip(slices, index, strict=True))
            assert holes[part].all() or not holes[part].any()
            if not (everywhere or holes[part].all()):
                continue
            for channel in image:
                target = channel[part]
                if normalised:
                    target = (target - target.mean()) / np.sqrt(target.var() + 1e-6)
                seen = 0 if holes[part].all() else channel[part]
                squares.append((2 * seen + 0.5 - target).ravel() ** 2)
    assert float(mae.loss(scaled, views)) == pytest.approx(np.concatenate(squares).mean(), rel=1e-5)


@pytest.mark.parametrize("everywhere", [False, True])
def test_loss__another_target_where_nothing_is_hidden__counts_only_if_all_voxels_do(everywhere: bool) -> None:
    """And what is hidden always counts."""
    mae, images = objective(PATCHES[1], everywhere=everywhere), batch(PATCHES[1])
    views = dict(mae.views({"images": images}, np.random.default_rng(0)))
    before = float(mae.loss(scaled, views))
    visible = views | {"target": torch.where(views["hidden"], views["target"], 100.0)}
    hidden = views | {"target": torch.where(views["hidden"], 100.0, views["target"])}
    assert (float(mae.loss(scaled, visible)) != before) == everywhere
    assert float(mae.loss(scaled, hidden)) != before


def test_views__every_image__has_holes_of_its_own_and_nothing_of_what_is_hidden() -> None:
    """Hidden voxels are zero in all channels, the others as they were, three quarters are hidden."""
    mae, images = objective((16, 16, 16)), batch((16, 16, 16))
    views = mae.views({"images": images}, np.random.default_rng(0))
    hidden = views["hidden"].expand_as(images)
    assert (views["image"][hidden] == 0).all()
    assert torch.equal(views["image"][~hidden], images[~hidden])
    assert views["hidden"].float().mean() == 0.75
    assert not torch.equal(views["hidden"][0], views["hidden"][1])


def test_normalise__constant_block__is_zero() -> None:
    """No division by nothing."""
    assert (Blocks.of((4, 4), 2).normalise(torch.full((1, 1, 4, 4), 7.0)) == 0).all()


def test_method__several_objectives__losses_are_weighted_and_heads_are_theirs() -> None:
    """A method is a weighted sum, whose objectives see the same batch."""

    class Mean:
        heads = nn.Linear(2, 3)

        def views(self, batch: torch.Tensor, generator: np.random.Generator) -> dict[str, torch.Tensor]:
            return {"batch": batch}

        def loss(self, network: nn.Module, views: dict[str, torch.Tensor]) -> torch.Tensor:
            return network(views["batch"]).mean()

    method = Method({"a": Mean(), "b": Mean()}, {"b": 10.0})
    losses = method.losses(scaled, torch.ones(1, 1, 2, 2), np.random.default_rng(0))
    assert {name: float(loss) for name, loss in losses.items()} == {"a": 2.5, "b": 25.0}
    assert {tuple(tensor.shape) for tensor in method.heads.parameters()} == {(3, 2), (3,)}
