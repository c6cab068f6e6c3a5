"""Looks at images, against SciPy, and what crops show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from coarse2fine.pretrain.views import Looks, blurred


def ramps(shape: tuple[int, ...], count: int = 200) -> torch.Tensor:
    """Each channel is the position along one axis."""
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)
    return torch.from_numpy(np.repeat(places[None], count, 0))


@pytest.mark.parametrize("shape", [(12, 20), (8, 10, 12)])
def test_crop__positions__are_those_of_boxes_of_the_shares_that_were_asked_for(shape: tuple[int, ...]) -> None:
    """Positions stay linear, so a crop's extent is read off; all shares occur, and mirror images as often as said."""
    crops = Looks(least=0.3, flip=0.25).crop(ramps(shape), np.random.default_rng(0)).numpy()
    shares, mirrored = np.ones(len(crops)), []
    for axis, size in enumerate(shape):
        line = np.moveaxis(crops[:, axis], axis + 1, 1).reshape(len(crops), size, -1)
        assert np.allclose(line, line[..., :1], atol=1e-3)  # along the other axes nothing changes
        steps = np.diff(line[..., 0], axis=1)
        assert np.allclose(steps, steps[:, :1], atol=1e-3)
        assert line.min() >= 0
        assert line.max() <= size - 1
        shares *= np.abs(steps[:, 0]) * size / (size - 1)  # from middle to middle of the outermost voxels
        mirrored.append((steps[:, 0] < 0).mean())
    assert shares.min() == pytest.approx(0.3, abs=0.03)
    assert shares.max() == pytest.approx(1, abs=0.03)
    assert mirrored[-1] == pytest.approx(0.25, abs=0.1)
    assert all((share == 0) == (len(shape) == 2) for share in mirrored[:-1])


def test_crop__image_with_padding__never_shows_it() -> None:
    """Whatever the padding's value."""
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 1, 12, 12)).astype(np.float32))
    images[:, :, :3], images[:, :, :, 9:] = 100, -100
    assert Looks().crop(images, np.random.default_rng(1)).abs().max() < 10


def test_crop__of_everything__is_an_interpolation_by_scipy() -> None:
    """From the middle of the first voxel to that of the last."""
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 7, 9)).astype(np.float32))
    crop = Looks(least=1, flip=0).crop(images, np.random.default_rng(1))
    places = [(np.arange(size) + 0.5) * (size - 1) / size for size in (7, 9)]
    expected = map_coordinates(images[0, 0].numpy(), np.meshgrid(*places, indexing="ij"), order=1)
    assert np.allclose(crop[0, 0], expected, atol=1e-5)


@pytest.mark.parametrize(("shape", "sigma"), [((1, 9, 12), 0.8), ((2, 6, 7, 8), 1.3), ((1, 3, 3), 2.0)])
def test_blurred__any_dimension__is_scipys(shape: tuple[int, ...], sigma: float) -> None:
    """With its way of going on beyond faces."""
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    radius = max(1, int(np.ceil(3 * sigma)))
    expected = [gaussian_filter(channel, sigma, radius=radius, mode="reflect") for channel in image]
    assert np.allclose(blurred(torch.from_numpy(image), sigma), expected, atol=1e-5)


def test_recolour__without_blur__is_linear_within_its_limits() -> None:
    """Gain and shift are found again by least squares."""
    images = torch.from_numpy(np.random.default_rng(0).normal(5, 2, (100, 1, 6, 6)).astype(np.float32))
    changed = Looks(contrast=0.3, brightness=0.2, blur=0).recolour(images, np.random.default_rng(1))
    gains, shifts = [], []
    for image, other in zip(images.numpy(), changed.numpy(), strict=True):
        gain, _ = np.polyfit(image.ravel(), other.ravel(), 1)
        gains.append(gain)
        shifts.append((other.mean() - image.mean()) / image.std(ddof=1))
    assert 0.7 <= min(gains) < 0.75 < 1.25 < max(gains) <= 1.3
    assert -0.2 <= min(shifts) + 1e-4 < -0.15 < 0.15 < max(shifts) - 1e-4 <= 0.2
