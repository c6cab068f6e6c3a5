"""Distortions against SciPy and by their properties; policies by their strings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from coarse2fine.errors import ConfigError
from coarse2fine.finetune.distort import (
    DISTORTIONS,
    Strength,
    brightness,
    contrast,
    posterise,
    rotate,
    sharpness,
    shear_x,
    solarise,
    translate_x,
    translate_y,
)
from coarse2fine.finetune.policy import Policy


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    """A smooth image of one channel."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return torch.from_numpy(ndimage.gaussian_filter(noise, 2).astype(np.float32))[None]


def inner(image: torch.Tensor | np.ndarray) -> np.ndarray:
    """Away from the border, where different ways of padding meet."""
    return np.asarray(image)[..., 12:-12, 14:-14]


def test_rotate__oblong_image__is_the_rotation_of_scipy() -> None:
    """By 30 degrees at full strength, in the plane of the last two axes, in 2D and in each slice of a volume."""
    image = picture(40, 56)
    labels = (image[0] > 0).long()
    moved, turned_labels = rotate((image, labels), Strength(1, 1))
    expected = ndimage.rotate(image[0].numpy(), 30, reshape=False, order=1)
    assert np.allclose(inner(moved[0]), inner(expected), atol=1e-4)
    assert turned_labels is not None
    nearest = ndimage.rotate(labels.numpy(), 30, reshape=False, order=0)
    assert (inner(turned_labels) == inner(nearest)).mean() > 0.99
    volume = torch.stack([image, 2 * image], 1)
    turned, _ = rotate((volume, None), Strength(1, 1))
    assert np.allclose(inner(turned[0, 0]), inner(moved[0]), atol=1e-4)
    assert np.allclose(inner(turned[0, 1]), 2 * inner(moved[0]), atol=1e-4)


def test_shear_x_and_translate__a_grid__put_at_each_place_what_scipy_finds_there() -> None:
    """A shift by 0.25 of the width is by whole voxels; what comes in is the mean, and background."""
    image = picture(40, 56)
    sheared, _ = shear_x((image, None), Strength(1, -1))
    matrix = np.array([[1, 0], [-0.3, 1]])  # of places (y, x)
    middle = np.array([19.5, 27.5])
    expected = ndimage.affine_transform(image[0].numpy(), matrix, middle - matrix @ middle, order=1)
    assert np.allclose(inner(sheared[0]), inner(expected), atol=1e-4)
    moved, labels = translate_x((image, torch.ones(40, 56, dtype=torch.uint8)), Strength(0.25 / 0.45, 1))
    assert torch.allclose(moved[..., :-14], image[..., 14:], atol=1e-4)
    assert torch.allclose(moved[..., -13:], image.mean().expand(40, 13), atol=1e-4)
    assert labels is not None
    assert labels.dtype == torch.uint8
    assert (labels[:, :-14] == 1).all()
    assert (labels[:, -13:] == 0).all()
    up, _ = translate_y((image, None), Strength(0.25 / 0.45, -1))
    assert torch.allclose(up[:, 10:], image[:, :-10], atol=1e-4)


def test_photometric__values_from_0_to_1__are_what_their_names_say() -> None:
    """Brightness and contrast are linear, posterising leaves as many values as bits allow, solarising inverts."""
    image = torch.linspace(0, 1, 101)[None, :, None].expand(1, 101, 9)
    assert torch.allclose(brightness((image, None), Strength(1, -1))[0], 0.1 * image, atol=1e-6)
    assert torch.allclose(brightness((image, None), Strength(0.5, 1))[0], (1.45 * image).clamp(max=1), atol=1e-6)
    assert torch.allclose(contrast((image, None), Strength(0.5, -1))[0], 0.5 + 0.55 * (image - 0.5), atol=1e-6)
    assert len(posterise((image, None), Strength(0.5, 1))[0].unique()) == 4
    assert len(posterise((image, None), Strength(0, 1))[0].unique()) == 16
    inverted = solarise((image, None), Strength(0.25, 1))[0]
    assert torch.allclose(inverted, torch.where(image > 0.75, 1 - image, image), atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 14), (6, 12, 14)])
def test_sharpness__less__smooths_with_the_kernel_whose_middle_counts_five_times(shape: tuple[int, ...]) -> None:
    """At the lowest factor, 0.1, nine tenths of the image are smoothed."""
    image = picture(*shape)
    kernel = np.ones((3,) * len(shape))
    kernel[(1,) * len(shape)] = 5
    smooth = ndimage.convolve(image[0].numpy(), kernel / kernel.sum())
    expected = smooth + 0.1 * (image[0].numpy() - smooth)
    inside = (slice(1, -1),) * len(shape)
    assert np.allclose(sharpness((image, None), Strength(1, -1))[0][0].numpy()[inside], expected[inside], atol=1e-5)


@pytest.mark.parametrize("distortion", DISTORTIONS, ids=lambda one: one.__name__)
def test_distortion__no_strength__changes_next_to_nothing_and_an_even_image_never(distortion: object) -> None:
    """Posterising is the exception: its mildest form has 16 grey values."""
    image = picture(16, 20)
    coarse = (image.max() - image.min()) / 15 if distortion is posterise else 1e-5
    same, _ = distortion((image, None), Strength(0, 1))  # type: ignore[operator]
    assert float((same - image).abs().max()) <= float(coarse)
    even = torch.full((1, 8, 8), 3.0)
    assert torch.allclose(distortion((even, None), Strength(1, 1))[0], even)  # type: ignore[operator]


def test_apply__a_policy__changes_images_by_the_generator_alone_and_labels_with_them() -> None:
    """The same seed gives the same; labels that follow an image still lie on it."""
    images = torch.stack([picture(24, 24, seed=seed) for seed in range(8)])
    labels = (images[:, 0] > 0.05).long()
    policy = Policy.parse("rand-m3-n1-mstd0.5-inc1", mirror=(1,))
    first, moved = policy.apply(images, labels, np.random.default_rng(3))
    again, _ = policy.apply(images, labels, np.random.default_rng(3))
    assert torch.equal(first, again)
    assert not torch.equal(first, policy.apply(images, labels, np.random.default_rng(4))[0])
    assert moved is not None
    geometric = Policy(mirror=(1,)).apply(images, labels, np.random.default_rng(0))
    mirrored = [not torch.equal(one, other) for one, other in zip(geometric[0], images, strict=True)]
    assert 0 < sum(mirrored) < 8
    assert torch.equal(geometric[1], (geometric[0][:, 0] > 0.05).long())
    assert torch.equal(geometric[0][mirrored], images[mirrored].flip(3))


def test_apply__no_policy__leaves_images_as_they_are() -> None:
    """Nothing is even copied."""
    images = torch.zeros(2, 1, 4, 4)
    assert Policy.parse("none").apply(images, None, np.random.default_rng(0))[0] is images


@pytest.mark.parametrize("text", ["rand-m11", "rand-w0", "augmix-m3", "rand-m", "rand-m6-mstd-0.5", "", "rand-m6x"])
def test_parse__unknown_string__names_the_part_and_a_string_that_works(text: str) -> None:
    """The one in the remedy is understood."""
    with pytest.raises(ConfigError, match="in the augmentation") as error:
        Policy.parse(text)
    assert Policy.parse(error.value.remedy.rstrip(".").split()[-1]).magnitude == 6


def test_parse__all_parts__are_kept() -> None:
    """With two distortions of magnitude 10 where nothing is said, as timm has it."""
    assert Policy.parse("rand-m7-n3-mstd0.5-inc1") == Policy(7, 0.5, 3, True)
    assert Policy.parse("rand") == Policy(10, 0, 2, False)
