"""Numbers of maps against masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coarse2fine.errors import VolumeError
from coarse2fine.explain.statistics import agreement, mean_maps


@given(st.integers(0, 2**32 - 1))
def test_agreement__any_map__equals_brute_force(seed: int) -> None:
    """Voxel by voxel; a map that is the same everywhere has its area as energy."""
    rng = np.random.default_rng(seed)
    values, mask = rng.random((3, 4, 5)), rng.random((3, 4, 5)) < 0.4
    found = agreement(values, mask)
    inside = [value for value, there in zip(values.flat, mask.flat, strict=True) if there]
    assert found.energy == pytest.approx(sum(inside) / values.sum())
    assert found.hit == (values.max() in inside)
    assert agreement(np.ones_like(values), mask).energy == pytest.approx(found.area) == len(inside) / 60


def test_agreement__maxima_that_tie_and_empty_maps__are_no_hits_by_chance() -> None:
    """Most of the highest values must lie inside, and an empty map has none."""
    mask = np.array([1, 0, 0, 0])
    assert not agreement(np.array([2.0, 2.0, 2.0, 0.0]), mask).hit
    assert agreement(np.array([2.0, 2.0, 2.0, 0.0]), np.array([1, 1, 0, 0])).hit
    empty = agreement(np.zeros(4), mask)
    assert (empty.energy, empty.hit) == (None, False)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.ones(3), r"a map of shape \(3,\) and a mask of \(4,\)"),
        (np.array([1, -1, 0, 0.0]), "from -1.0 to 1.0"),
        (np.array([1, np.nan, 0, 0.0]), "from nan"),
    ],
)
def test_agreement__what_is_no_map_of_it__is_refused(values: np.ndarray, problem: str) -> None:
    """Shapes that differ, and values that are no map's."""
    with pytest.raises(VolumeError, match=problem):
        agreement(values, np.ones(4))


def test_mean_maps__by_class__are_means_of_equal_shapes_only() -> None:
    """Each class has its own."""
    rng = np.random.default_rng(0)
    maps = rng.random((3, 4, 5))
    found = mean_maps([("a", maps[0]), ("b", maps[1]), ("a", maps[2])])
    np.testing.assert_allclose(found["a"], maps[[0, 2]].mean(0))
    np.testing.assert_allclose(found["b"], maps[1])
    with pytest.raises(VolumeError, match=r"maps of a have the shapes \(4, 5\) and \(4, 6\)"):
        mean_maps([("a", maps[0]), ("a", np.ones((4, 6)))])
