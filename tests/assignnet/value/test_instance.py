"""Training instances: their files, and what a region costs and a selection is worth."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product
from math import prod

import h5py
import numpy as np
import pytest
from assign_examples import line, random_instance
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

from assignnet import CostModel, Roi, RoiTree
from assignnet.choice.tree import Features
from assignnet.value.instance import Instance, read_instances, total_slots, write_instances
from assignnet.value.voxel_counts import count_outcomes
from canvas import Box

FAR_OFF = CostModel(
    (5, 6, 7), 0.3, "native", tile_step=0.25, drop=True, native=(9, 8, 7), context=(0, 1, 2), budget=2.5, keep=3
)


def same(one: object, other: object) -> bool:
    """Whether two dataclasses hold the same, arrays and their types included."""
    for field in fields(one):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(ours, np.ndarray):
            if ours.dtype != theirs.dtype or not np.array_equal(ours, theirs):
                return False
        elif field.name in ("features", "outcomes"):
            if not same(ours, theirs):
                return False
        elif ours != theirs or type(ours) is not type(theirs):
            return False
    return True


def empty_instance() -> Instance:
    """A volume in which the coarse stage saw nothing."""
    truth = np.ones((2, 2, 2), np.uint8)
    outcomes = count_outcomes(truth, np.zeros_like(truth), [], (1,))
    return Instance("none/0", "none", RoiTree((), (), (2, 2, 2)), CostModel((1, 1, 1)), Features(), outcomes, 0.1)


# --- files


@pytest.mark.parametrize(
    "instances",
    [
        [random_instance(seed, features=seed, volume=2 * seed) for seed in range(3)],
        [replace(random_instance(3), cost_model=FAR_OFF)],
        [replace(random_instance(4), cost_model=CostModel((1, 2, 3)))],
        [line(), empty_instance()],
        [],
    ],
    ids=["several", "every setting", "no setting", "no region", "none"],
)
def test_read_instances__written_ones__returns_the_same(instances, tmp_path) -> None:
    """Trees, cost models, features, outcomes and names come back unchanged, in order, and what is told of them."""
    about = {"model": "tiny", "cases": ["a", "b"], "threshold": 0.25}
    write_instances(tmp_path / "file.h5", instances, about)
    read, told = read_instances(tmp_path / "file.h5")
    assert told == about
    assert len(read) == len(instances)
    assert all(same(one, other) for one, other in zip(instances, read, strict=True))


def test_read_instances__more_than_ten__keeps_the_order(tmp_path) -> None:
    """The order of instances is that of their numbers, not of their digits."""
    instances = [replace(empty_instance(), name=str(number)) for number in range(12)]
    write_instances(tmp_path / "file.h5", instances, {})
    assert [instance.name for instance in read_instances(tmp_path / "file.h5")[0]] == [str(n) for n in range(12)]


def test_read_instances__foreign_hdf5__raises(tmp_path) -> None:
    """An HDF5 file of something else, or of another version, is refused and named."""
    path = tmp_path / "other.h5"
    for attributes in ({}, {"format": "coarse2fine assign instances 0"}):
        with h5py.File(path, "w") as file:
            file.create_group("000000")
            file.attrs.update(attributes)
        with pytest.raises(ValueError, match=r"other\.h5 holds no instances"):
            read_instances(path)


def test_read_instances__no_hdf5__raises(tmp_path) -> None:
    """Any other file is an error of reading."""
    (tmp_path / "text.h5").write_text("no instances")
    with pytest.raises(OSError, match="signature"):
        read_instances(tmp_path / "text.h5")


# --- cost


def test_slots__context__counts_the_room_of_the_shown_box_with_its_surroundings() -> None:
    """A box of 4 x 6 x 20 is shown as 4 x 6 x 8, with context 6 x 10 x 14 = 840 of the slot's 512 voxels."""
    cost_model = CostModel((8, 8, 8), context=(1, 2, 3))
    assert cost_model.slots(Box.whole((4, 6, 20))) == pytest.approx(840 / 512)
    # Native: windows of 8 at steps of 4 along 20 are four.
    assert replace(cost_model, large="native").slots(Box.whole((4, 6, 20))) == pytest.approx(4 * 840 / 512)
    # A larger native size, 16, shows more: (4 + 2) x (6 + 4) x (16 + 6).
    assert replace(cost_model, native=(16, 16, 16)).slots(Box.whole((4, 6, 20))) == pytest.approx(1320 / 512)


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, 60)] * 3), st.tuples(*[st.integers(4, 20)] * 3), st.none() | st.just((1, 0, 2)))
def test_slots__native_tiles__cost_what_the_tiles_cost_together(shape, native, context) -> None:
    """A box larger than native costs the sum of nnU-Net's windows, each as a box of its own."""
    cost_model = CostModel((8, 8, 8), large="native", native=native, context=context)
    window = tuple(min(edge, tile) for edge, tile in zip(shape, native, strict=True))
    steps = compute_steps_for_sliding_window(shape, window, 0.5)
    room = prod(edge + 2 * side for edge, side in zip(window, context or (0, 0, 0), strict=True)) / 512
    expected = sum(1.0 if context is None else room for _ in product(*steps))
    assert cost_model.slots(Box.whole(shape)) == pytest.approx(expected)


def test_total_slots__parents_and_leaves__counts_children_only() -> None:
    """The unit of cost is what all children occupy, and 1 where there is none."""
    assert total_slots(line().tree, line().cost_model) == 3
    assert total_slots(RoiTree((), (), (1, 1, 1)), CostModel((1, 1, 1))) == 1


# --- worth


def test_reward__line__is_what_is_found_less_what_it_costs() -> None:
    """Left half and leaf find all 4 voxels and nothing else for 2 of 3 slots; the parent finds 1 and 1 wrongly."""
    instance = line()
    whole, left, _, leaf = instance.tree.rois
    assert instance.reward((left, leaf), "dice", 0.3) == pytest.approx(1 - 0.2)
    assert instance.reward((left, leaf), "iou", 0.3) == pytest.approx(1 - 0.2)
    assert instance.reward((whole,), "dice", 0.3) == pytest.approx(2 * 1 / (2 + 4) - 0.1)
    assert instance.reward((whole,), "iou", 0.3) == pytest.approx(1 / 5 - 0.1)
    assert instance.reward((), "dice", 0.3) == 0


def test_reward__something_found_outside__counts_the_gain_only() -> None:
    """What the volume has without any region is no merit of the selection."""
    truth = np.uint8([[[1, 1, 1, 1]]])
    roi = Roi(Box((0, 0, 2), (1, 1, 4)), 0.5, 1.0)
    outcomes = count_outcomes(truth, np.uint8([[[1, 1, 0, 0]]]), [(roi.box.slices, np.uint8([[[1, 0]]]))], (1,))
    instance = Instance(
        "a", "a", RoiTree((roi,), ((roi,),), (1, 1, 4)), CostModel((1, 1, 2)), Features(), outcomes, 1.0
    )
    assert instance.reward((roi,), "dice", 0.0) == pytest.approx(6 / 7 - 4 / 6)


def test_chosen__any_order__marks_the_rows_of_the_tree() -> None:
    """A selection becomes a mask over the tree's regions."""
    instance = line()
    rois = instance.tree.rois
    assert instance.chosen((rois[3], rois[1])).tolist() == [False, True, False, True]


def test_weighted__new_weight__changes_nothing_else() -> None:
    """Training varies the weight of an instance."""
    instance = line()
    other = instance.weighted(0.25)
    assert other.cost_model == replace(instance.cost_model, weight=0.25)
    assert other.outcomes is instance.outcomes
    assert other.tree is instance.tree
