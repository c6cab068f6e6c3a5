"""What a run did, in numbers: against painting voxels, and summed over cells."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assignnet import Roi, RoiTree
from canvas import Box, Canvas, Placement, Triple
from coarse2fine.coarse.scene import Scene
from coarse2fine.counts import Share, Tally, tally
from coarse2fine.fine.segment import FineResult
from coarse2fine.regions.search_grid import Place
from coarse2fine.report import Boxes, Canvases, Coverage
from coarse2fine.segmenter import Segmented

VOLUME: Triple = (4, 12, 24)
COARSE: Triple = (4, 6, 8)  # voxels of 1 x 2 x 3
HEATMAP = np.random.default_rng(0).integers(1, 9, COARSE).astype(np.float32) / 8
CELLS = [Box((0, y, x), (4, y + 6, x + 12)) for y in (0, 6) for x in (0, 12)]
NO_TREE = RoiTree((), (), VOLUME)


def boxes_of(data: st.DataObject, most: int) -> list[Box]:
    """Boxes that may overlap and reach out of the volume."""
    corner = st.tuples(*[st.integers(-2, edge - 1) for edge in VOLUME])
    shape = st.tuples(*[st.integers(1, edge) for edge in VOLUME])
    return [Box.of(*pair) for pair in data.draw(st.lists(st.tuples(corner, shape), max_size=most))]


def painted(boxes: list[Box]) -> np.ndarray:
    inside = np.zeros(VOLUME, bool)
    for box in boxes:
        inside[box.clip(Box.whole(VOLUME)).slices] = True
    return inside


def mass_of(boxes: list[Box]) -> float:
    """Sum of the heatmap where centres of its voxels lie in boxes; the centre of three voxels is the middle one."""
    centres = painted(boxes)[:, 1::2, 1::3]  # an even number of voxels has its centre at the second one's lower face
    return float(HEATMAP[centres].sum(dtype=np.float64))


def tally_of(
    fine: FineResult | list[Box],
    share: Share | None = None,
    *,
    heatmap: np.ndarray = HEATMAP,
    place: Place | None = None,
    offset: Triple = (0, 0, 0),
    tree: RoiTree = NO_TREE,
    chosen: tuple[Roi, ...] = (),
    unpacked: bool = False,
) -> Tally:
    """What is counted of boxes in a heatmap, neither of which needs networks."""
    result = FineResult((), tuple(fine), 0, 0) if isinstance(fine, list) else fine
    view = SimpleNamespace(whole=VOLUME, window=Box(offset, VOLUME))
    scene = Scene(view, SimpleNamespace(heatmap=heatmap, place=place))  # type: ignore[arg-type]
    return tally(Segmented(None, tree, chosen, result, unpacked), scene, share or Share())  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_tally__whole_volume__counts_what_painting_counts(data: st.DataObject) -> None:
    """Boxes that overlap count once, and what reaches out of the volume does not count."""
    boxes = boxes_of(data, 5)
    counts = tally_of(boxes)
    assert counts.working == np.prod(VOLUME)
    assert counts.covered == painted(boxes).sum()
    assert counts.mass == HEATMAP.sum(dtype=np.float64)
    assert counts.mass_covered == mass_of(boxes)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_tally__cells__add_up_to_the_whole_volume(data: st.DataObject) -> None:
    """Where all of the other cells is looked at there, and each sees its own part of the heatmap and some around it."""
    boxes = [boxes_of(data, 2) for _ in CELLS]
    total = Tally()
    for number, core in enumerate(CELLS):
        own = Box((0, core.start[1] // 2, core.start[2] // 3), (4, core.stop[1] // 2, core.stop[2] // 3))
        seen = own.grow((0, 2, 3)).clip(Box.whole(COARSE))
        offset = (0, core.start[1], core.start[2])
        total += tally_of(
            [box.shift(tuple(-by for by in offset)) for box in boxes[number]],
            Share(own.relative_to(seen), core, tuple(cell for cell in CELLS if cell != core)),
            heatmap=HEATMAP[seen.slices],
            place=Place(seen.start, COARSE),
            offset=offset,
        )
    assert total.working == np.prod(VOLUME)
    assert total.mass == pytest.approx(HEATMAP.sum(dtype=np.float64))
    inside = [[box.clip(core) for box in some] for core, some in zip(CELLS, boxes, strict=True)]
    assert total.covered == sum(painted(some).sum() for some in inside)
    assert total.mass_covered == pytest.approx(sum(mass_of(some) for some in inside))


def test_tally__box_in_another_cell__counts_there_unless_that_cell_is_known_to_look_at_it() -> None:
    """A cell adds what its boxes reach of others to what lies in itself."""
    core, box, own = CELLS[0], Box((0, 0, 6), (4, 6, 18)), Box((0, 0, 0), (4, 3, 4))
    one = tally_of([box], Share(own, core))
    assert one.working == core.volume
    assert one.covered == box.volume
    assert one.mass == pytest.approx(HEATMAP[own.slices].sum(dtype=np.float64))
    assert one.mass_covered == pytest.approx(mass_of([box]))
    theirs = Box((0, 0, 12), (4, 6, 15))
    known = tally_of([box], Share(own, core, (theirs,)))
    assert known.covered == box.volume - theirs.volume
    assert known.mass_covered == pytest.approx(mass_of([box]) - mass_of([theirs]))


def test_tally__regions_and_canvases__are_counted() -> None:
    """Dropped is a parent of which neither it nor a child was chosen; rooms on canvases count if they are used."""
    children = [Roi(Box.of((0, 0, x), (2, 2, 2)), 0.5, 1.0) for x in range(0, 20, 4)]
    parents = [Roi(Box((0, 0, 0), (2, 2, 6)), 0.5, 1.0), Roi(Box((0, 0, 8), (2, 2, 14)), 0.5, 1.0), children[4]]
    tree = RoiTree(tuple(parents), (tuple(children[:2]), tuple(children[2:4]), (children[4],)), VOLUME)
    box = Box((0, 0, 0), (2, 2, 2))
    canvases = tuple(Canvas(shape, (1, 1, 1), (Placement(0, box, box, box),)) for shape in ((4, 4, 4), (2, 4, 4)))
    fine = FineResult(canvases, (box, box), 3, 5, 7)
    counts = tally_of(fine, tree=tree, chosen=(parents[0], children[3]))
    assert counts.boxes == Boxes(children=5, parents=3, selected=2, dropped=1, grown=3, cut=5)
    assert counts.network_inputs == Canvases(count=2, voxels=96, network_voxels=103, fill=16 / 96)
    assert counts.unpacked == 0
    assert tally_of(fine, tree=tree, chosen=tuple(parents), unpacked=True).unpacked == 3
    assert tally_of(fine, tree=tree).dropped == 3


def test_tally__sum__adds_each_number_to_its_own() -> None:
    """And reads back what it wrote."""
    one = Tally(*range(1, 16))
    two = Tally(*(100 * number for number in range(1, 16)))
    assert (one + two).to_dict() == {name: 101 * value for name, value in one.to_dict().items()}
    assert Tally(**one.to_dict()) == one


def test_coverage__nothing_there__misses_nothing() -> None:
    """Neither shares nor fill divide by nothing, and a share is never above one."""
    assert Tally().coverage == Coverage(volume=1.0, heatmap_mass=1.0)
    assert Tally(working=4, covered=1, mass=2.0, mass_covered=2.5).coverage == Coverage(volume=0.25, heatmap_mass=1.0)
    assert Tally().network_inputs == Canvases(count=0, voxels=0, network_voxels=0, fill=0.0)
