"""Packing: what holds for every input, and examples at the sizes of the original system."""

from itertools import chain, pairwise, product
from math import ceil, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_checks import assert_disjoint_and_inside, triples
from random_boxes import boxes_in

from canvas import (
    Box,
    Canvas,
    Placement,
    canvas_grids,
    gather,
    pack_same_scale,
    pack_same_size,
    pack_tiles,
    share_filled,
    trim,
)

steady = settings(deadline=None)  # a busy machine is no failure
EM = {"canvas": (24, 256, 256), "slot": (12, 128, 128), "volume": (100, 1000, 1000)}


@st.composite
def problems(draw):
    """Ordered boxes inside a volume that may be smaller or larger than the canvas: (boxes, canvas, slot, volume)."""
    canvas, volume = draw(triples(1, 12)), draw(triples(1, 30))
    slot = tuple(draw(st.integers(1, edge)) for edge in canvas)
    boxes = draw(st.lists(boxes_in(volume), max_size=20))
    return boxes, canvas, slot, volume


def assert_sound(canvases, boxes, canvas):
    """What both ways to pack promise."""
    placements = [placement for one in canvases for placement in one.placements]
    assert sorted(placement.crop for placement in placements) == list(range(len(boxes)))
    for placement in placements:
        assert placement.box == boxes[placement.crop]
        assert placement.source.contains(placement.box)
        assert placement.native == (placement.scale == (1, 1, 1))
    for one in canvases:
        assert one.shape == canvas
        assert one.placements
        assert_disjoint_and_inside([placement.slot for placement in one.placements], canvas)
        covered = sum(prod(placement.slot.shape) for placement in one.placements)
        assert one.fill == pytest.approx(covered / prod(canvas))


@pytest.mark.parametrize(
    ("canvas", "slot", "grids"),
    [
        ((24, 256, 256), (12, 128, 128), [(1, 1, 1), (1, 2, 2), (2, 2, 2)]),
        ((56, 192, 192), (56, 96, 96), [(1, 1, 1), (1, 2, 2)]),
        ((288, 64, 64), (64, 64, 64), [(1, 1, 1), (4, 1, 1)]),
        ((24, 256, 256), (24, 256, 256), [(1, 1, 1)]),
        ((25, 300, 200), (12, 128, 128), [(1, 1, 1), (1, 2, 1), (2, 2, 1)]),
    ],
)
def test_canvas_grids__sizes_of_the_original_system__are_the_expected_grids(canvas, slot, grids):
    """The grids of the original system's canvases, counted by hand."""
    assert list(canvas_grids(canvas, slot)) == grids


@pytest.mark.parametrize("slot", [(25, 128, 128), (12, 128, 0)])
def test_canvas_grids__slot_that_cannot_lie_in_canvas__is_refused(slot):
    """A slot longer than the canvas, or without voxels, is an error and not an empty grid."""
    with pytest.raises(ValueError, match="does not fit"):
        canvas_grids((24, 256, 256), slot)


@steady
@given(problems(), st.booleans())
def test_pack_same_size__any_boxes__keeps_its_promises(problem, resize_always):
    """Disjoint slots, order kept, and per axis: native with context where the box fits, else exactly the box."""
    boxes, canvas, slot, volume = problem
    canvases = pack_same_size(boxes, canvas, slot, volume, resize_always=resize_always)
    assert_sound(canvases, boxes, canvas)
    placements = list(chain.from_iterable(one.placements for one in canvases))
    assert [placement.crop for placement in placements] == list(range(len(boxes)))
    assert len(canvases) == ceil(len(boxes) / prod(edge // part for edge, part in zip(canvas, slot, strict=True)))
    for placement in placements:
        box, source, shown = placement.box, placement.source, placement.slot.shape
        for axis in range(3):
            if resize_always or box.shape[axis] > shown[axis]:
                assert (source.start[axis], source.stop[axis]) == (box.start[axis], box.stop[axis])
            else:
                assert source.shape[axis] == shown[axis]
            if volume[axis] >= shown[axis]:
                assert source.start[axis] >= 0
                assert source.stop[axis] <= volume[axis]


@pytest.mark.parametrize(
    ("count", "grids"),
    [
        (0, []),
        (1, [(1, 1, 1)]),
        (3, [(1, 2, 2)]),
        (5, [(2, 2, 2)]),
        (16, [(2, 2, 2), (2, 2, 2)]),
        (17, [(2, 2, 2), (2, 2, 2), (1, 1, 1)]),
    ],
)
def test_pack_same_size__no_capacity__remainder_takes_smallest_grid_that_holds_it(count, grids):
    """Full canvases have 8 slots; what is left over goes to 1, 4 or 8 slots."""
    boxes = [Box.of((0, 0, number), (4, 4, 4)) for number in range(count)]
    assert [one.grid for one in pack_same_size(boxes, **EM)] == grids


@pytest.mark.parametrize(("capacity", "canvases", "fill"), [(1, 10, 1.0), (4, 3, 0.5), (8, 2, 0.25)])
def test_pack_same_size__explicit_capacity__always_uses_its_grid(capacity, canvases, fill):
    """Ten boxes need 10, 3 or 2 canvases; the last holds 1 of 1, 2 of 4 or 2 of 8 slots."""
    boxes = [Box.of((0, 0, number), (4, 4, 4)) for number in range(10)]
    packed = pack_same_size(boxes, **EM, capacity=capacity)
    assert [prod(one.grid) for one in packed] == [capacity] * canvases
    assert packed[-1].fill == fill


def test_pack_same_size__capacity_without_grid__names_those_that_exist():
    """The message tells which capacities this canvas has."""
    with pytest.raises(ValueError, match="capacities are 1, 4, 8"):
        pack_same_size([], **EM, capacity=2)


def test_pack_same_size__consecutive_boxes__lie_in_slots_that_share_a_face():
    """Two boxes that follow each other touch: their slots differ by one slot edge on one axis."""
    boxes = [Box.of((0, 0, number), (4, 4, 4)) for number in range(18)]
    (canvas,) = pack_same_size(boxes, (24, 30, 40), (12, 10, 10), (50, 50, 50))[:1]
    assert len(canvas.placements) == 18
    for one, other in pairwise(placement.slot.start for placement in canvas.placements):
        steps = sorted(abs(a - b) // edge for a, b, edge in zip(one, other, (12, 10, 10), strict=True))
        assert steps == [0, 0, 1]


@pytest.mark.parametrize(
    ("options", "shape", "source", "scale"),
    [
        ({}, (12, 128, 128), (12, 128, 128), (1, 1, 1)),
        ({}, (6, 40, 60), (12, 128, 128), (1, 1, 1)),
        ({}, (18, 100, 192), (18, 128, 192), (1.5, 1, 1.5)),
        ({"resize_always": True}, (6, 192, 64), (6, 192, 64), (0.5, 1.5, 0.5)),
        ({"crop_threshold": (6, 64, 64)}, (6, 96, 64), (12, 96, 128), (1, 0.75, 1)),
        ({"crop_threshold": (64, 200, 64)}, (6, 192, 64), (12, 192, 128), (1, 1.5, 1)),
    ],
)
def test_pack_same_size__one_box_in_slot_of_12x128x128__is_read_as_the_mode_says(options, shape, source, scale):
    """Context where the box is short, the box itself where it is long, worked out by hand per axis."""
    box = Box.of((50, 500, 500), shape)
    (canvas,) = pack_same_size([box], **EM, capacity=8, **options)
    (placement,) = canvas.placements
    assert placement.slot == Box.whole((12, 128, 128))
    assert placement.source.shape == source
    assert placement.scale == scale
    assert placement.native == (scale == (1, 1, 1))


@pytest.mark.parametrize("threshold", [None, (12, 128, 128)])
def test_pack_same_size__single_box_between_slot_and_canvas__is_native(threshold):
    """A box left alone gets the whole canvas, and what fits that is not resized; the threshold grows with the slot."""
    box = Box.of((0, 30, 500), (20, 200, 250))
    (canvas,) = pack_same_size([box], **EM, crop_threshold=threshold)
    (placement,) = canvas.placements
    assert placement.native
    # y: centre 130, 256 long, from 2; z: centre 10, cannot start before 0; x: centre 625.
    assert placement.source == Box((0, 2, 497), (24, 258, 753))


def test_pack_same_size__volume_thinner_than_slot__source_sticks_out_evenly():
    """Where the volume ends before the slot does, the crop stays native and reads beyond both ends."""
    (canvas,) = pack_same_size([Box.whole((8, 128, 128))], **EM | {"volume": (8, 128, 128)}, capacity=8)
    assert canvas.placements[0].source == Box((-2, 0, 0), (10, 128, 128))


@steady
@given(problems(), triples(0, 4))
def test_pack_same_scale__any_boxes__keeps_its_promises(problem, margin):
    """Disjoint slots, native wherever the canvas is long enough, and as much context as asked for and possible."""
    boxes, canvas, _, volume = problem
    canvases = pack_same_scale(boxes, canvas, volume, margin=margin)
    assert_sound(canvases, boxes, canvas)
    firsts = [min(placement.crop for placement in one.placements) for one in canvases]
    assert firsts == sorted(firsts)
    for placement in chain.from_iterable(one.placements for one in canvases if len(one.placements) > 1):
        box, source, shown = placement.box, placement.source, placement.slot.shape
        assert Box.whole(volume).contains(source)
        for axis in range(3):
            if box.shape[axis] > canvas[axis]:
                assert (source.shape[axis], shown[axis]) == (box.shape[axis], canvas[axis])
                continue
            low = max(0, box.start[axis] - margin[axis])
            high = min(volume[axis], box.stop[axis] + margin[axis])
            assert source.shape[axis] == shown[axis] == min(high - low, canvas[axis])
            assert low <= source.start[axis]
            assert source.stop[axis] <= high


def test_pack_same_scale__crop_alone_on_its_canvas__is_shown_with_all_context_that_fits():
    """Real surroundings fill the canvas; only on an axis on which the box is longer is it resized."""
    small, long = Box.of((30, 40, 50), (4, 4, 4)), Box.of((30, 0, 50), (4, 90, 4))
    (canvas,) = pack_same_scale([small], (8, 32, 32), (64, 128, 128), margin=(1, 1, 1))
    assert canvas.placements[0].source == small.centred((8, 32, 32), Box.whole((64, 128, 128)))
    assert canvas.placements[0].slot == Box.whole((8, 32, 32))
    (canvas,) = pack_same_scale([long], (8, 32, 32), (64, 128, 128), margin=(1, 1, 1))
    assert canvas.placements[0].source.shape == (8, 90, 32)
    (canvas,) = pack_same_scale([small, small], (8, 32, 32), (64, 128, 128), margin=(1, 1, 1))
    assert {placement.source.shape for placement in canvas.placements} == {(6, 6, 6)}


def test_pack_same_scale__equal_boxes__fill_canvases_in_order():
    """Twenty slot-sized boxes need no reordering: 8, 8 and 4 of them in the caller's order."""
    boxes = [Box.of((0, 0, 10 * number), (12, 128, 128)) for number in range(20)]
    canvases = pack_same_scale(boxes, EM["canvas"], EM["volume"], margin=(0, 0, 0))
    crops = [[placement.crop for placement in one.placements] for one in canvases]
    assert crops == [list(range(8)), list(range(8, 16)), list(range(16, 20))]


@pytest.mark.parametrize("pack", [pack_same_size, pack_same_scale])
@pytest.mark.parametrize(
    ("box", "message"),
    [
        (Box((5, 5, 5), (5, 9, 9)), "box 1 is empty"),
        (Box((-1, 0, 0), (5, 5, 5)), "box 1 reaches outside"),
        (Box((0, 0, 990), (5, 5, 1001)), "box 1 reaches outside"),
    ],
)
def test_pack__empty_or_outside_box__is_refused_by_its_number(pack, box, message):
    """A box without voxels, or with voxels that do not exist, is the caller's mistake and is named."""
    options = EM if pack is pack_same_size else {"canvas": EM["canvas"], "volume": EM["volume"], "margin": (0, 0, 0)}
    with pytest.raises(ValueError, match=message):
        pack([Box.whole((4, 4, 4)), box], **options)


def test_pack_same_scale__negative_margin__is_refused():
    """A margin that would cut into the boxes is an error."""
    with pytest.raises(ValueError, match="negative"):
        pack_same_scale([], (4, 4, 4), (8, 8, 8), margin=(0, -1, 0))


def test_placement__source_without_the_box__is_refused():
    """A placement whose source misses a voxel of its box would lose a result silently."""
    with pytest.raises(ValueError, match="does not contain"):
        Placement(0, Box.whole((4, 4, 5)), Box.whole((4, 4, 4)), Box.whole((4, 4, 4)))


def test_canvas__two_slots_in_use__fill_is_their_share():
    """Slots of 2x4x4 and 1x1x4 voxels cover 36 of 128."""
    slots = Box.whole((2, 4, 4)), Box.of((2, 0, 0), (1, 1, 4))
    canvas = Canvas((8, 4, 4), (1, 1, 1), tuple(Placement(i, slot, slot, slot) for i, slot in enumerate(slots)))
    assert canvas.fill == 36 / 128


@steady
@given(problems(), triples(1, 4))
def test_trim__any_canvas__is_the_smallest_multiple_that_holds_every_slot(problem, divisor):
    """Nothing moves, one divisor less on any axis would cut a slot, and a canvas never gets larger."""
    boxes, canvas, _, volume = problem
    size = tuple(edge * by for edge, by in zip(canvas, divisor, strict=True))
    for packed in pack_same_scale(
        [box.clip(Box.whole(volume)) for box in boxes if box.clip(Box.whole(volume)).volume], size, volume
    ):
        cut = trim(packed, divisor)
        assert cut.placements == packed.placements
        for axis, by in enumerate(divisor):
            last = max(placement.slot.stop[axis] for placement in packed.placements)
            assert cut.shape[axis] % by == 0
            assert cut.shape[axis] - by < last <= cut.shape[axis] <= size[axis]


def test_share_filled__canvases_of_different_size__counts_voxels():
    """A full canvas of 64 voxels and an empty-looking one of 8 with 2 in use: 66 of 72; none at all: 0."""
    slots = Box.whole((4, 4, 4)), Box.whole((2, 1, 1))
    shapes = (4, 4, 4), (2, 2, 2)
    canvases = [
        Canvas(shape, (1, 1, 1), (Placement(0, slot, slot, slot),)) for shape, slot in zip(shapes, slots, strict=True)
    ]
    assert share_filled(canvases) == 66 / 72
    assert share_filled([]) == 0


@steady
@given(problems(), triples(0, 20))
def test_pack_same_scale__volume_thinner_than_padded__every_crop_shows_all_of_it(drawn, padded):
    """On such an axis a crop is as thick as the padded volume, as far as the canvas has room; else as without it."""
    boxes, canvas, _, volume = drawn
    plain = {one.crop: one for two in pack_same_scale(boxes, canvas, volume) for one in two.placements}
    packed = pack_same_scale(boxes, canvas, volume, padded=padded)
    assert_sound(packed, boxes, canvas)
    for canvas_ in packed:
        for one in canvas_.placements:
            for axis in range(3):
                if volume[axis] < padded[axis] and one.box.shape[axis] <= canvas[axis]:
                    shown = min(padded[axis], canvas[axis])
                    assert one.source.shape[axis] >= shown
                    if volume[axis] <= shown == one.source.shape[axis]:  # evenly, as nnU-Net pads
                        assert one.source.start[axis] == -((shown - volume[axis]) // 2)
                elif len(canvas_.placements) > 1:
                    lone = plain[one.crop]
                    assert one.source.shape[axis] <= max(lone.source.shape[axis], one.box.shape[axis])


def test_pack_tiles__boxes_on_a_grid_of_tiles__every_voxel_is_shown_once_for_each_tile_that_has_it():
    """A tile without a box is no canvas; one with several is read once, filled once, and shows where it lies."""
    volume, edge = (4, 20, 20), (6, 8, 8)
    corners = product((-1,), (0, 6, 12), (0, 6, 12))
    tiles = [Box.of(corner, edge) for corner in corners]
    boxes = [Box((0, 1, 1), (4, 3, 3)), Box((1, 2, 1), (2, 9, 20)), Box((0, 4, 4), (4, 5, 5))]
    canvases = pack_tiles(boxes, tiles, volume)
    assert [canvas.placements[0].source for canvas in canvases] == tiles[:6]  # the last row of tiles begins at 12
    shown = np.zeros((len(boxes), *volume), int)
    for canvas in canvases:
        assert canvas.fill == 1
        reads = []
        data = np.zeros((1, *canvas.shape), np.float32)
        gather(canvas, lambda box, shape, reads=reads: reads.append(box) or np.ones((1, *shape), np.float32), data)
        assert data.all()
        assert len(reads) == 1
        for placement in canvas.placements:
            shown[placement.crop][placement.box.slices] += 1
    for number, box in enumerate(boxes):
        expected = np.zeros(volume, int)
        for tile in tiles:
            expected[box.clip(tile).slices] += 1
        np.testing.assert_array_equal(shown[number], expected)
    assert share_filled(canvases) == 1
