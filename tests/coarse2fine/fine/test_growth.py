"""Boxes that follow masks."""

from __future__ import annotations

import numpy as np

from canvas import Box, Placement
from coarse2fine.fine.growth import Region, cut_faces, follow_mask, join_regions

VOLUME, STEP = (40, 40, 40), (2, 4, 4)
NONE = np.empty((0, 6), dtype=np.int64)
BOX = Box((10, 10, 10), (20, 20, 20))
SOURCE = Box((8, 6, 6), (22, 24, 24))
PLACEMENT = Placement(0, BOX, SOURCE, Box.whole(SOURCE.shape))


def mask_of(*boxes: Box) -> np.ndarray:
    """A mask on the placement's slot: true in boxes of the working grid."""
    volume = np.zeros(VOLUME, bool)
    for box in boxes:
        volume[box.slices] = True
    return volume[SOURCE.slices]


def test_follow_mask__mask_inside__box_stays() -> None:
    """A mask that does not run through a face changes nothing, even if it ends right at the face."""
    growth = follow_mask(PLACEMENT, mask_of(Box((10, 12, 12), (20, 18, 18))), (), NONE, VOLUME, STEP)
    assert (growth.box, growth.keep, growth.beyond) == (BOX, None, ())


def test_follow_mask__mask_reaches_into_context__box_grows_to_hold_it() -> None:
    """What the crop shows of the object counts without a further run; another object in the context does not."""
    cut, other = Box((14, 14, 14), (16, 16, 23)), Box((9, 7, 7), (10, 9, 9))
    growth = follow_mask(PLACEMENT, mask_of(cut, other), (), NONE, VOLUME, STEP)
    assert growth.box.contains(cut)
    assert growth.beyond == ()
    assert growth.keep is not None
    kept = growth.keep & mask_of(cut, other)
    np.testing.assert_array_equal(kept, mask_of(cut))


def test_follow_mask__mask_leaves_the_crop__asks_for_the_region_beyond() -> None:
    """An object longer than the crop is followed by a region that begins where the crop ends, seeded by the object."""
    growth = follow_mask(PLACEMENT, mask_of(Box((14, 14, 14), (16, 16, 30))), (), NONE, VOLUME, STEP)
    assert growth.box.stop[2] == SOURCE.stop[2]
    (region,) = growth.beyond
    assert region.box.start[2] == SOURCE.stop[2]
    assert region.box.contains(Box((14, 14, 24), (16, 16, 28)))
    assert region.seeds == (Box((14, 14, 23), (16, 16, 24)),)


def test_follow_mask__seeded_region__counts_only_what_is_connected_to_the_seed() -> None:
    """In a region that was asked for, an object that does not touch the seed does not count."""
    followed, stranger = Box((14, 14, 9), (16, 16, 14)), Box((18, 18, 16), (20, 20, 19))
    growth = follow_mask(PLACEMENT, mask_of(followed, stranger), (Box((14, 14, 9), (16, 16, 10)),), NONE, VOLUME, STEP)
    assert growth.keep is not None
    np.testing.assert_array_equal(growth.keep, mask_of(followed))


def test_follow_mask__neighbour_box_beyond_the_face__box_stays() -> None:
    """Where another box lies beyond the face the object is not cut; where it covers only a part, it is."""
    mask = mask_of(Box((12, 12, 12), (18, 18, 24)))
    whole = np.array([[10, 10, 20, 20, 20, 30]])
    part = np.array([[10, 10, 20, 14, 20, 30]])
    assert follow_mask(PLACEMENT, mask, (), whole, VOLUME, STEP).box == BOX
    assert follow_mask(PLACEMENT, mask, (), part, VOLUME, STEP).box != BOX


def test_follow_mask__border_of_the_volume__is_no_cut() -> None:
    """Objects may end at the volume's own border."""
    box = Box((0, 0, 0), (10, 10, 10))
    placement = Placement(0, box, box, box)
    mask = np.zeros(box.shape, bool)
    mask[:, 3:5, 3:5] = True
    assert follow_mask(placement, mask, (), NONE, (10, 40, 40), STEP).beyond == ()
    assert len(follow_mask(placement, mask, (), NONE, (40, 40, 40), STEP).beyond) == 1


def test_follow_mask__not_worth_it__is_counted_as_refused() -> None:
    """A face behind which nothing is worth following is left alone, and said so."""
    growth = follow_mask(PLACEMENT, mask_of(Box((14, 14, 14), (16, 16, 30))), (), NONE, VOLUME, STEP, lambda box: False)
    assert (growth.box, growth.beyond, growth.refused) == (BOX, (), 1)


def test_cut_faces__mask_through_two_faces__counts_both() -> None:
    """Where nothing may grow, the faces that cut through a mask are still counted, unless a neighbour lies beyond."""
    mask = mask_of(Box((12, 12, 12), (18, 18, 24)), Box((7, 12, 12), (12, 18, 18)))
    assert cut_faces(PLACEMENT, mask, NONE, VOLUME) == 2
    assert cut_faces(PLACEMENT, mask, np.array([[10, 10, 20, 20, 20, 30]]), VOLUME) == 1


def test_follow_mask__resized_crop__works_in_voxels_of_the_working_grid() -> None:
    """A crop shown at half size asks for a region in working-grid voxels."""
    box = Box((0, 0, 0), (20, 20, 20))
    placement = Placement(0, box, box, Box.whole((10, 10, 10)))
    mask = np.zeros((10, 10, 10), bool)
    mask[4:6, 4:6, 5:] = True
    (region,) = follow_mask(placement, mask, (), NONE, VOLUME, STEP).beyond
    assert region.box == Box((6, 4, 20), (14, 16, 24))


def test_join_regions__overlapping_ones__become_one_while_they_fit_the_slot() -> None:
    """Mostly overlapping regions are joined if their hull fits; distant ones and too large hulls are not."""
    a, b = Region(Box.of((0, 0, 0), (4, 4, 4)), (BOX,)), Region(Box.of((0, 0, 1), (4, 4, 4)), (SOURCE,))
    far = Region(Box.of((20, 0, 0), (4, 4, 4)), (BOX,))
    joined = join_regions([a, b, far], (8, 8, 8))
    assert {region.box for region in joined} == {Box((0, 0, 0), (4, 4, 5)), far.box}
    assert any(set(region.seeds) == {BOX, SOURCE} for region in joined)
    assert len(join_regions([a, b], (4, 4, 4))) == 2


def test_follow_mask__grown_box__still_counts_all_of_the_original_one() -> None:
    """There background is a result, too; of a region that was asked for only the followed mask is."""
    cut = Box((14, 14, 14), (16, 16, 23))
    inside = BOX.relative_to(SOURCE).slices
    growth = follow_mask(PLACEMENT, mask_of(cut), (), NONE, VOLUME, STEP)
    assert growth.box != BOX
    assert growth.keep is not None
    assert growth.keep[inside].all()
    seeded = follow_mask(PLACEMENT, mask_of(cut), (Box((14, 14, 14), (16, 16, 15)),), NONE, VOLUME, STEP)
    assert seeded.keep is not None
    np.testing.assert_array_equal(seeded.keep, mask_of(cut))
