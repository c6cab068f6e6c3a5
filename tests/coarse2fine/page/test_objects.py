"""Objects and the slices that show them; scipy.ndimage is the reference."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from coarse2fine.io.turn import Turn
from coarse2fine.page.objects import Found, choose_slices, find_objects

TURNS = [Turn(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)]


@given(st.integers(0, 1000), st.sampled_from(TURNS))
@settings(max_examples=40, deadline=None)
def test_find_objects__any_labels_and_turn__are_those_of_scipy_in_the_turned_volume(seed: int, turn: Turn) -> None:
    """Boxes, sizes and areas per slice of every object; each label has its own."""
    labels = np.random.default_rng(seed).choice(3, (5, 6, 7), p=(0.8, 0.1, 0.1)).astype(np.uint8)
    shown = turn.last_axes(labels)
    expected = []
    for value in (1, 2):
        components, _ = ndimage.label(shown == value, np.ones((3, 3, 3)))
        for number, box in enumerate(ndimage.find_objects(components), 1):
            areas = (components[box] == number).sum(axis=(1, 2))
            expected.append((value, int(areas.sum()), tuple((s.start, s.stop) for s in box), areas.tolist()))
    objects = find_objects(labels, turn)
    assert objects.count == len(expected)
    ours = [
        (one.value, one.voxels, tuple(zip(one.box.start, one.box.stop, strict=True)), one.areas.tolist())
        for one in objects.largest
    ]
    assert sorted(ours) == sorted(expected)
    assert [one.voxels for one in objects.largest] == sorted((size for _, size, *_ in expected), reverse=True)


@given(st.integers(0, 1000), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_choose_slices__any_objects__each_choice_shows_something_at_its_largest(seed: int, most: int) -> None:
    """At most so many slices, in order; while there is room, every object is seen well."""
    labels = np.random.default_rng(seed).choice(4, (12, 6, 6), p=(0.94, 0.02, 0.02, 0.02)).astype(np.uint8)
    objects = find_objects(labels, Turn()).largest
    slices = choose_slices(objects, most)
    assert slices == sorted(set(slices))
    assert len(slices) <= most
    assert all(any(one.box.start[0] <= index < one.box.stop[0] for one in objects) for index in slices)
    if len(slices) < most:
        assert all(any(map(one.seen_in, slices)) for one in objects)


def test_choose_slices__many_objects_of_one_label__the_other_label_is_not_forgotten() -> None:
    """One voxel of a label gets its slice before the second-largest object of another one."""
    labels = np.zeros((40, 8, 8), np.uint8)
    labels[::4, :6, :6] = 1
    labels[18, 7, 7] = 2
    objects = find_objects(labels, Turn()).largest
    assert 18 in choose_slices(objects, 2)


def test_choose_slices__one_object__is_seen_at_three_places() -> None:
    """Where it is largest, in the middle of such slices, and where a quarter and three quarters of it lie below."""
    labels = np.zeros((20, 9, 9), np.uint8)
    for z, edge in enumerate((1, 2, 3, 4, 9, 4, 4, 4, 4, 4, 4), 4):
        labels[z, :edge, :edge] = 1
    assert choose_slices(find_objects(labels, Turn()).largest) == [8, 11]  # a quarter lies below slice 8, too
    labels[8] = labels[9]
    assert choose_slices(find_objects(labels, Turn()).largest) == [8, 11, 12]


def test_find_objects__empty__is_nothing() -> None:
    """No object, and no slice that shows one."""
    objects = find_objects(np.zeros((3, 4, 5), np.uint16), Turn())
    assert (objects.largest, objects.count, choose_slices(objects.largest)) == ((), 0, [])


def test_seen_in__half_of_the_largest_area__is_the_limit() -> None:
    """An object that is cut near its end is not seen well there."""
    labels = np.zeros((3, 4, 4), np.uint8)
    labels[0, 0, :1], labels[1, 0, :2], labels[2, 0, :] = 1, 1, 1
    (one,) = find_objects(labels, Turn()).largest
    assert isinstance(one, Found)
    assert [one.seen_in(index) for index in (-1, 0, 1, 2, 3)] == [False, False, True, True, False]
    assert one.peak == 2


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_slice_at__any_share__lies_in_the_object(share: float) -> None:
    """Of an object that does not begin in the first slice."""
    labels = np.zeros((9, 4, 4), np.uint8)
    labels[3:7, 1, 1] = 1
    (one,) = find_objects(labels, Turn()).largest
    assert one.slice_at(share) == {0.01: 3, 0.5: 4, 1.0: 6}[share]
