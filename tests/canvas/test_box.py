"""Box algebra against boolean arrays: every operation is checked by counting or comparing voxels."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canvas import Box, to_array

LOW, HIGH = -4, 10  # boxes lie between -2 and 8, the rest is room for shifting and growing by up to 2
coordinate = st.integers(-2, 7)
steady = settings(deadline=None)  # a busy machine is no failure
small = st.tuples(*[st.integers(0, 2)] * 3)


@st.composite
def boxes(draw, smallest=0):
    edges = [sorted((draw(coordinate), draw(coordinate))) for _ in range(3)]
    start = tuple(a for a, _ in edges)
    return Box(start, tuple(max(b, a + smallest) for a, b in edges))


def mask(box):
    """The box painted voxel by voxel, so that none of its methods are used."""
    zyx = np.indices([HIGH - LOW] * 3) + LOW
    start, stop = (np.reshape(corner, (3, 1, 1, 1)) for corner in (box.start, box.stop))
    return ((start <= zyx) & (zyx < stop)).all(axis=0)


@steady
@given(boxes(), boxes())
def test_overlap__any_two_boxes__agrees_with_masks(a, b):
    """Volume, intersection, IoU and IoS are voxel counts of masks and their ratios."""
    in_a, in_b = mask(a), mask(b)
    common, union, smaller = (in_a & in_b).sum(), (in_a | in_b).sum(), min(in_a.sum(), in_b.sum())
    assert a.volume == in_a.sum()
    assert a.intersection(b) == common
    assert a.iou(b) == pytest.approx(common / union if union else 0)
    assert a.ios(b) == pytest.approx(common / smaller if smaller else 0)


@steady
@given(boxes(smallest=1), boxes(smallest=1))
def test_hull__two_boxes__is_bounding_box_of_their_union(a, b):
    """The hull's mask is filled exactly where a bounding box of both masks lies."""
    filled = np.argwhere(mask(a) | mask(b)) + LOW
    assert a.hull(b) == Box(tuple(filled.min(axis=0)), tuple(filled.max(axis=0) + 1))


@steady
@given(boxes(), boxes(smallest=1))
def test_contains__any_two_boxes__is_subset_of_masks(a, b):
    """A box contains another if no voxel of the other's mask lies outside of its own."""
    assert a.contains(b) == (not (mask(b) & ~mask(a)).any())


@steady
@given(boxes(), boxes())
def test_clip__any_bounds__is_conjunction_of_masks_inside_bounds(box, bounds):
    """Clipping leaves the common voxels; also an empty result lies inside the bounds."""
    clipped = box.clip(bounds)
    assert (mask(clipped) == (mask(box) & mask(bounds))).all()
    assert bounds.contains(clipped)


@steady
@given(boxes(smallest=1), small)
def test_grow__any_margin__is_dilation_of_mask(box, margin):
    """Growing adds every voxel that a shift by up to the margin reaches."""
    grown = np.zeros_like(mask(box))
    for offset in product(*(range(-m, m + 1) for m in margin)):
        grown |= np.roll(mask(box), offset, axis=(0, 1, 2))
    assert (mask(box.grow(margin)) == grown).all()


@steady
@given(boxes(), small)
def test_shift__any_offset__moves_mask(box, offset):
    """Shifting moves every voxel by the offset, and counting from that offset undoes it."""
    moved = box.shift(offset)
    assert (mask(moved) == np.roll(mask(box), offset, axis=(0, 1, 2))).all()
    assert moved.relative_to(Box.of(offset, (1, 1, 1))) == box


@steady
@given(boxes(), st.tuples(*[st.integers(0, 9)] * 3))
def test_fits__any_shape__is_whether_some_position_covers_it(box, shape):
    """A box fits a shape if moving it to the origin keeps it inside of a box of that shape."""
    assert box.fits(shape) == Box.whole(shape).contains(Box((0, 0, 0), box.shape))


@steady
@given(boxes(), st.tuples(*[st.integers(0, 12)] * 3), boxes(smallest=1))
def test_centred__any_shape_and_bounds__is_nearest_position_inside(box, shape, bounds):
    """Per axis, no allowed position is nearer to the centre; a shape too long for the bounds sticks out evenly."""
    result = box.centred(shape, bounds)
    assert result.shape == shape
    for axis in range(3):
        low, high, edge = bounds.start[axis], bounds.stop[axis], shape[axis]
        twice_centre = box.start[axis] + box.stop[axis] if edge <= high - low else low + high
        allowed = range(low, high - edge + 1) if edge <= high - low else range(high - edge, low + 1)
        nearest = min(abs(2 * start + edge - twice_centre) for start in allowed)
        assert result.start[axis] in allowed
        assert abs(2 * result.start[axis] + edge - twice_centre) == nearest


def test_slices__box_in_array__selects_its_voxels():
    """Indexing with the slices writes exactly the voxels of the mask, and the shape is the selection's."""
    box = Box((1, 2, 0), (3, 3, 5))
    array = np.zeros((6, 6, 6), dtype=bool)
    array[box.slices] = True
    assert (array == mask(box)[-LOW : 6 - LOW, -LOW : 6 - LOW, -LOW : 6 - LOW]).all()
    assert array[box.slices].shape == box.shape == (2, 1, 5)


def test_box__stop_before_start__is_refused():
    """A box with a negative edge is a mistake, not an empty box."""
    with pytest.raises(ValueError, match="stops before it starts"):
        Box((0, 5, 0), (1, 4, 1))


def test_to_array__boxes_and_none__has_six_columns():
    """Rows are starts then stops, and no boxes still give six columns."""
    assert to_array([Box((1, 2, 3), (4, 5, 6))]).tolist() == [[1, 2, 3, 4, 5, 6]]
    assert to_array([]).shape == (0, 6)
