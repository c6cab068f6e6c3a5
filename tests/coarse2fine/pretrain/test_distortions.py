"""Distortions: where they leave images as they are, and what they do elsewhere."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.ndimage import label
from scipy.stats import spearmanr

from coarse2fine.pretrain import distortions
from coarse2fine.pretrain.distortions import bend, cut_out, distort, paint_out, shuffle, swap

SHAPES = [(56, 70), (20, 24, 28)]


def image(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Of two channels."""
    return torch.from_numpy(np.random.default_rng(seed).normal(3, 2, (2, *shape)).astype(np.float32))


def changed(before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    """Voxels; a change is in all channels."""
    differs = (before != after).numpy()
    assert (differs.all(0) == differs.any(0)).mean() > 0.999  # noise may hit the value that was there
    return differs.any(0)


@pytest.mark.parametrize("shape", SHAPES)
def test_cut_out__holes__are_few_boxes_of_noise(shape: tuple[int, ...]) -> None:
    """A hole by itself is a box of the least and greatest edges; noise keeps to the image's values."""
    generator, before = np.random.default_rng(0), image(shape)
    least, most = ((10 / 224, 70 / 224), (1 / 6, 1 / 3))[len(shape) - 2]
    counts, shares = [], []
    for _ in range(60):
        after = cut_out(before, generator)
        holes, count = label(changed(before, after), np.ones([3] * len(shape)))
        counts.append(count)
        assert after.min() >= before.min()
        assert after.max() <= before.max()
        if count == 1 and (box := np.argwhere(holes)).size:
            edges = np.ptp(box, axis=0) + 1
            if edges.prod() == len(box):  # not two that overlap
                shares.append(edges / shape)
    assert max(counts) <= (10 if len(shape) == 2 else 5)
    assert len(set(counts)) > 2
    limits = np.array(shares)
    assert (limits >= least - 0.5 / np.array(shape)).all()
    assert (limits <= most + 0.5 / np.array(shape)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_paint_out__windows__stay_and_the_rest_is_noise(shape: tuple[int, ...]) -> None:
    """At least one window of 3/7 of each edge stays, and never everything; noise is uniform over the image's values."""
    generator, before = np.random.default_rng(0), image(shape)
    spoilt = [paint_out(before, generator) for _ in range(40)]
    shares = [1 - changed(before, after).mean() for after in spoilt]
    assert min(shares) > (3 / 7 - 0.03) ** len(shape)
    assert 0.3 * (3 / 7) < max(shares) < 1
    noise = np.concatenate([after[before != after].numpy() for after in spoilt])
    quarters, _ = np.histogram(noise, 4, (float(before.min()), float(before.max())))
    assert quarters / len(noise) == pytest.approx([1 / 4] * 4, abs=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_swap__blocks__change_places_and_nothing_is_lost(shape: tuple[int, ...]) -> None:
    """The same voxels are there, few of them elsewhere; channels stay together."""
    before = image(shape)
    after = swap(before, np.random.default_rng(0))
    assert torch.equal(after.flatten(1).sort().values, before.flatten(1).sort().values)
    pairs = [{*map(tuple, one.flatten(1).T.tolist())} for one in (before, after)]
    assert pairs[0] == pairs[1]
    most = 20 * np.prod([np.ceil(15 / 224 * size) for size in shape])
    assert 0 < changed(before, after).sum() <= most


@pytest.mark.parametrize("shape", SHAPES)
def test_shuffle__voxels__move_less_than_a_tenth_of_an_edge(shape: tuple[int, ...]) -> None:
    """Channels that hold positions say from where each voxel came; each is there once."""
    places = torch.from_numpy(np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32))
    generator, moved = np.random.default_rng(0), 0.0
    for _ in range(10):
        after = shuffle(places, generator)
        assert len({*map(tuple, after.flatten(1).T.tolist())}) == np.prod(shape)
        far = (after - places).abs().flatten(1).max(1).values
        assert all(distance < max(2, round(size / 10)) for distance, size in zip(far, shape, strict=True))
        moved = max(moved, float((after != places).any(0).float().mean()))
    assert moved > 0.6


def test_bend__intensities__follow_a_monotone_curve_within_their_range() -> None:
    """Rising or falling, about as often; an image without contrast stays as it is."""
    before, signs = image((20, 20)), []
    for seed in range(40):
        after = bend(before, np.random.default_rng(seed))
        order = spearmanr(before.ravel(), after.ravel()).statistic
        assert abs(order) > 0.999
        signs.append(order > 0)
        assert after.min() == pytest.approx(float(before.min()), abs=0.02)
        assert after.max() == pytest.approx(float(before.max()), abs=0.02)
        assert not torch.allclose(before, after, atol=0.1)
    assert 8 < sum(signs) < 32
    flat = torch.full((1, 4, 4), 2.5)
    assert torch.equal(bend(flat, np.random.default_rng(0)), flat)


def test_distort__batch__leaves_a_quarter_of_pictures_and_few_volumes_as_they_were() -> None:
    """Images that come in are not changed themselves."""
    for shape, share in (((16, 16), 1 / 4), ((8, 8, 8), 0.5 * 0.1 * 0.1)):
        before = torch.stack([image(shape, seed) for seed in range(200)])
        kept = before.clone()
        after = distort(before, np.random.default_rng(0))
        assert torch.equal(before, kept)
        assert (before == after).flatten(1).all(1).float().mean() == pytest.approx(share, abs=0.08)


@pytest.mark.parametrize(
    ("shape", "chances"),
    [
        ((4, 4), {"cut_out": 1 / 4, "paint_out": 1 / 4, "swap": 1 / 4}),
        ((4, 4, 4), {"shuffle": 0.5, "bend": 0.9, "paint_out": 0.9 * 0.8, "cut_out": 0.9 * 0.2}),
    ],
)
def test_distort__many_images__each_distortion_is_as_often_as_published(
    shape: tuple[int, ...], chances: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four things one in 2D, as in DiRA; Models Genesis' chances in 3D."""
    counts: Counter[str] = Counter()

    def counted(name: str) -> distortions.Distortion:
        def leave(image: torch.Tensor, _: np.random.Generator) -> torch.Tensor:
            counts[name] += 1
            return image

        return leave

    for name in ("cut_out", "paint_out", "swap", "shuffle", "bend"):
        monkeypatch.setattr(distortions, name, counted(name))
    distort(torch.zeros(2000, 1, *shape), np.random.default_rng(0))
    assert {name: count / 2000 for name, count in counts.items()} == pytest.approx(chances, abs=0.04)
