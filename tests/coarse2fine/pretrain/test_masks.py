"""Masks: how much they hide, and where."""

from __future__ import annotations

from fractions import Fraction
from math import inf, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from coarse2fine.errors import ConfigError
from coarse2fine.pretrain.blocks import Blocks
from coarse2fine.pretrain.masking import Masking
from coarse2fine.pretrain.masks import (
    block_centres,
    block_mask,
    centre_weights,
    grid_mask,
    random_mask,
    visible_count,
)

SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)
SEEDS = st.integers(0, 2**32 - 1)


@given(st.integers(1, 5000), st.integers(1, 99))
def test_visible_count__any_percentage__is_that_of_exact_arithmetic(blocks: int, percent: int) -> None:
    """Rounding of floating point does not hide the last block."""
    assert visible_count(blocks, percent / 100) == int(blocks * (1 - Fraction(percent, 100)))


@settings(max_examples=40, deadline=None)
@given(SHAPES, SEEDS, st.data())
def test_masks__any_shape__hide_exactly_as_many_and_depend_on_the_seed_alone(
    shape: tuple[int, ...], seed: int, data: st.DataObject
) -> None:
    """Random, block and centre-weighted masks, in one to four dimensions."""
    hidden = data.draw(st.integers(0, prod(shape)))
    weights = centre_weights(block_centres(shape), 0.3)
    for draw in (
        lambda generator: random_mask(shape, hidden, generator),
        lambda generator: random_mask(shape, hidden, generator, weights),
        lambda generator: block_mask(shape, hidden, generator),
    ):
        first, second = (draw(np.random.default_rng(seed)) for _ in range(2))
        assert first.shape == shape
        assert first.dtype == bool
        assert first.sum() == hidden
        assert np.array_equal(first, second)


@given(SHAPES, SEEDS)
def test_grid_mask__any_shape__leaves_every_second_block_along_every_axis(shape: tuple[int, ...], seed: int) -> None:
    """Visible blocks are a grid: two apart, along all axes that have more than one."""
    visible = ~grid_mask(shape, np.random.default_rng(seed))
    assert visible.any()
    axes = [
        np.flatnonzero(visible.any(axis=tuple(a for a in range(len(shape)) if a != axis))) for axis in range(len(shape))
    ]
    assert all(set(np.diff(along)) <= {2} for along in axes)
    assert all(len(along) in (size // 2, (size + 1) // 2) for along, size in zip(axes, shape, strict=True) if size > 1)
    assert visible.sum() == prod(map(len, axes))


def test_block_mask__half_of_the_blocks__hides_larger_pieces_than_random() -> None:
    """Neighbours of hidden blocks are hidden more often than half of the time."""

    def neighbours(mask: np.ndarray) -> float:
        pairs = [(np.diff(mask.astype(int), axis=axis) == 0).mean() for axis in range(mask.ndim)]
        return float(np.mean(pairs))

    generator = np.random.default_rng(0)
    shape, hidden = (8, 8, 8), 256
    blocks = np.mean([neighbours(block_mask(shape, hidden, generator)) for _ in range(20)])
    alone = np.mean([neighbours(random_mask(shape, hidden, generator)) for _ in range(20)])
    assert alone == pytest.approx(0.5, abs=0.02)
    assert blocks > 0.65


def test_centre_weights__by_hand__are_the_formula() -> None:
    """1 in the middle, the floor far away."""
    places = np.array([[0.0, 0.0], [0.5, 0.0], [1.0, 1.0]])
    found = np.exp(centre_weights(places, 0.5, floor=0.2))
    assert found == pytest.approx([1, 0.2 + 0.8 * np.exp(-0.5), 0.2 + 0.8 * np.exp(-4)])
    assert np.exp(centre_weights(places, 1e-3, floor=0.2))[1:] == pytest.approx([0.2, 0.2])


def test_random_mask__infinite_sigma__is_the_uniform_mask_itself() -> None:
    """The same random numbers hide the same blocks."""
    shape = (5, 6)
    weights = centre_weights(block_centres(shape), inf)
    masks = [random_mask(shape, 20, np.random.default_rng(3), w) for w in (None, weights)]
    assert np.array_equal(*masks)


@pytest.mark.parametrize("sigma", [inf, 0.4])
def test_random_mask__one_block_of_many_draws__has_the_probability_of_its_weight(sigma: float) -> None:
    """Chi-square over seeded draws of one block; with an infinite sigma that is the uniform distribution."""
    shape, draws = (3, 4), 4000
    weights = centre_weights(block_centres(shape), sigma)
    generator = np.random.default_rng(1)
    counts = np.sum([random_mask(shape, 1, generator, weights) for _ in range(draws)], axis=0)
    expected = np.exp(weights) / np.exp(weights).sum() * draws
    assert chisquare(counts.ravel(), expected.ravel()).pvalue > 0.01
    if sigma < inf:  # and the test would notice
        assert chisquare(counts.ravel()).pvalue < 1e-6


def test_random_mask__two_of_three__is_drawn_without_replacement_in_proportion() -> None:
    """The probability of each pair, by hand: one after the other, from what is left."""
    weights, draws = np.array([0.6, 0.3, 0.1]), 4000
    generator = np.random.default_rng(2)
    left = [int(np.flatnonzero(~random_mask((3,), 2, generator, np.log(weights)))[0]) for _ in range(draws)]
    pairs = [
        sum(weights[a] * weights[b] / (1 - weights[a]) for a, b in ((i, j), (j, i)))
        for i, j in ((1, 2), (0, 2), (0, 1))
    ]
    assert chisquare(np.bincount(left, minlength=3), np.array(pairs) * draws).pvalue > 0.01


def test_masking__centre__hides_the_middle_more_often() -> None:
    """At the same ratio."""
    masking = Masking(Blocks.of((32, 32, 32), 4), ratio=0.5, sigma=0.3)
    generator = np.random.default_rng(0)
    mean = np.mean([masking.draw(generator) for _ in range(20)], axis=0)
    assert mean.mean() == pytest.approx(0.5)
    assert mean[12:20, 12:20, 12:20].mean() > mean[:8, :8, :8].mean() + 0.2


@pytest.mark.parametrize(
    ("patch", "block", "options", "words", "mended"),
    [
        ((32, 32), 8, {"ratio": 0.0}, "ratio is 0", {"ratio": 0.75}),
        ((32, 32), 8, {"ratio": 1.0}, "ratio is 1", {"ratio": 0.75}),
        ((32, 32), 8, {"ratio": float("nan")}, "ratio is nan", {"ratio": 0.75}),
        ((32, 32), 8, {"ratio": 0.99}, "0.99 leaves none of 16 blocks visible", {"ratio": 0.937}),
        ((16, 16), 16, {}, "single block", {"block": 8}),
        ((32, 32), 8, {"kind": "grid", "ratio": 0.75}, "ratio 0.75 has no meaning for grids", {"ratio": None}),
        ((32, 32), 8, {"kind": "block", "sigma": 0.5}, "no meaning for masks of the kind block", {"kind": "random"}),
        ((32, 32), 8, {"sigma": 0.0}, "--centre is 0", {"sigma": 0.5}),
        ((32, 32), 8, {"sigma": -1.0}, "--centre is -1", {"sigma": 0.5}),
    ],
)
def test_masking__nothing_to_hide_or_to_see__is_refused_and_the_remedy_works(
    patch: tuple[int, ...], block: int, options: dict, words: str, mended: dict
) -> None:
    """One line names the value; what it advises is taken."""
    with pytest.raises(ConfigError, match=words) as raised:
        Masking(Blocks.of(patch, block), **options)
    for value in mended.values():
        assert value is None or str(value) in raised.value.remedy or "half" in raised.value.remedy
    masking = Masking(Blocks.of(patch, mended.pop("block", block)), **options | mended)
    mask = masking.draw(np.random.default_rng(0))
    assert mask.any()
    assert not mask.all()


@given(st.lists(st.integers(1, 70), min_size=1, max_size=3), st.integers(1, 20))
def test_blocks__any_patch__cover_it_with_edges_as_asked_and_nearly_equal(patch: list[int], edge: int) -> None:
    """As few as possible; they differ by at most one voxel."""
    blocks = Blocks.of(patch, edge)
    for size, edges in zip(patch, blocks.edges, strict=True):
        assert sum(edges) == size
        assert max(edges) <= edge
        assert len(edges) == -(-size // edge)
        assert max(edges) - min(edges) <= 1


@pytest.mark.parametrize("patch", [(10, 7), (6, 9, 5)])
def test_to_voxels__chosen_blocks__are_their_voxels(patch: tuple[int, ...]) -> None:
    """By brute force, voxel by voxel."""
    blocks = Blocks.of(patch, 4)
    chosen = np.random.default_rng(0).random(blocks.shape) < 0.5
    voxels = blocks.to_voxels(chosen)
    owner = [np.repeat(np.arange(len(edges)), edges) for edges in blocks.edges]
    assert voxels.shape == patch
    assert all(
        voxels[place] == chosen[tuple(int(axis[at]) for axis, at in zip(owner, place, strict=True))]
        for place in np.ndindex(*patch)
    )
