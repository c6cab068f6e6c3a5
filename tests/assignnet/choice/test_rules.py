"""The rules that choose from a tree."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tree_examples import LONE, PARTS, SLOT, VOLUME, WIDE, roi

from assignnet import RULES, Assigner, CostModel, Roi, RoiTree, all_children, all_parents, check_selection, greedy
from assignnet.choice.rules import in_space_order, random_rule, top_k
from canvas import Box

relaxed = settings(deadline=None)


def family(parent: Roi, *children: Roi) -> RoiTree:
    return RoiTree((parent,), (children or (parent,),), VOLUME)


@st.composite
def trees(draw: st.DrawFn) -> RoiTree:
    """Parents in separate cells of 32 voxels, with up to four different children each."""
    parents, families = [], []
    for cell in draw(st.sets(st.tuples(*[st.integers(0, 1)] * 3), max_size=6)):
        origin = tuple(32 * index for index in cell)
        starts = draw(st.sets(st.tuples(*[st.integers(0, 20)] * 3), min_size=1, max_size=4))
        edge = draw(st.integers(1, 12))
        mass = st.floats(0, 100)
        children = [roi(start, (edge, edge, edge), draw(mass)) for start in sorted(starts)]
        children = [Roi(child.box.shift(origin), child.score, child.mass) for child in children]
        hull = children[0].box
        for child in children[1:]:
            hull = hull.hull(child.box)
        parents.append(Roi(hull, 0.9, draw(mass)) if len(children) > 1 else children[0])
        families.append(tuple(children))
    return RoiTree(tuple(parents), tuple(families), VOLUME)


cost_models = st.builds(
    CostModel,
    slot=st.tuples(*[st.integers(1, 16)] * 3),
    weight=st.floats(0, 5),
    large=st.sampled_from(["resize", "native"]),
)


# --- greedy


@pytest.mark.parametrize(("weight", "split"), [(0.0, True), (0.79, True), (0.81, False)])
def test_greedy__children_add_detail__splits_up_to_the_exchange_rate(weight, split) -> None:
    """Children add value 0.9 - 0.5 for a cost of 1 - 1/2, so they pay off up to a weight of 0.8."""
    chosen = greedy(family(WIDE, *PARTS), CostModel(SLOT, weight))
    assert chosen == (PARTS if split else (WIDE,))


def test_greedy__children_overlap__counts_what_they_share_once() -> None:
    """Two children of mass 80 in a parent of 100 are worth 100 in all, not 160."""
    parts = (roi((0, 0, 0), (16, 16, 8), mass=80.0), roi((0, 0, 2), (16, 16, 14), mass=80.0))
    tree = family(WIDE, *parts)
    slot = (16, 16, 14)
    cost_model = CostModel(slot, weight=0.0)
    assert greedy(tree, cost_model) == parts
    gain = 1.0 - cost_model.fidelity(WIDE.box)
    assert greedy(tree, CostModel(slot, weight=2 * gain * 0.99)) == parts
    assert greedy(tree, CostModel(slot, weight=2 * gain * 1.01)) == (WIDE,)


@relaxed
@given(trees(), cost_models)
def test_greedy__parent_fits_a_slot__is_not_split(tree, cost_model) -> None:
    """One native crop shows all that several show, for less."""
    chosen = greedy(tree, cost_model)
    assert {parent for parent in tree.parents if parent.box.fits(cost_model.slot)} <= set(chosen)


def test_greedy__native_tiles__takes_the_cheaper_children() -> None:
    """Where a large parent costs 27 tiles, its two children cost 2 and lose a tenth of its mass."""
    tree = family(WIDE, *PARTS)
    assert greedy(tree, CostModel(SLOT, weight=0.05, large="native")) == PARTS
    assert greedy(tree, CostModel(SLOT, weight=0.0, large="native")) == (WIDE,)


@relaxed
@given(trees(), st.floats(0, 5))
@example(family(roi((0, 0, 0), (1, 1, 2), 3.0), roi((0, 0, 0), (1, 1, 1), 0.0), roi((0, 0, 1), (1, 1, 1), 7.0)), 0.0)
@example(
    family(
        roi((0, 0, 0), (1, 1, 2), 2.225073858507e-311), roi((0, 0, 0), (1, 1, 1), 0.0), roi((0, 0, 1), (1, 1, 1), 7.0)
    ),
    0.0,
)
def test_greedy__native_parent_costs_no_more__is_not_split(tree, weight) -> None:
    """By room, too, a parent that nothing shrinks is kept where its children together take as much of it."""
    cost_model = CostModel(SLOT, weight, native=(32, 32, 32), context=(3, 3, 3))
    chosen = greedy(tree, cost_model)
    for parent, children in zip(tree.parents, tree.children, strict=True):
        if cost_model.slots(parent.box) <= sum(cost_model.slots(child.box) for child in children):
            assert parent in chosen


@pytest.mark.parametrize(("weight", "split"), [(0.0, False), (0.029, False), (0.035, True)])
def test_greedy__same_scale_packing__splits_where_room_is_worth_more_than_mass(weight, split) -> None:
    """The native parent takes 4096 voxels and its parts 2 x 512: 3 of their cost saved, for a tenth of the mass."""
    cost_model = CostModel(SLOT, weight, native=(16, 16, 16), context=(0, 0, 0))
    assert cost_model.slots(WIDE.box) == 8
    assert greedy(family(WIDE, *PARTS), cost_model) == (PARTS if split else (WIDE,))


@relaxed
@given(trees(), cost_models)
def test_greedy__no_drop__covers_every_parent(tree, cost_model) -> None:
    """Whatever the weight, each parent is there itself or with all its children."""
    chosen = set(greedy(tree, cost_model))
    for parent, children in zip(tree.parents, tree.children, strict=True):
        assert parent in chosen or set(children) <= chosen


def test_greedy__drop__leaves_out_what_is_not_worth_its_cost() -> None:
    """The lone region holds 10 of 110 in mass for a third of the slots: too little from a weight of 0.2727 on."""
    tree = RoiTree((WIDE, LONE), (PARTS, (LONE,)), VOLUME)
    assert LONE in greedy(tree, CostModel(SLOT, weight=0.28))
    assert LONE in greedy(tree, CostModel(SLOT, weight=0.27, drop=True))
    assert LONE not in greedy(tree, CostModel(SLOT, weight=0.28, drop=True))


def test_greedy__no_mass_at_all__still_covers() -> None:
    """Regions without mass divide nothing by zero and stay selected."""
    blank = roi((0, 0, 0), (4, 4, 4), mass=0.0)
    assert greedy(family(blank), CostModel(SLOT, weight=1.0)) == (blank,)


# --- all rules


def test_all_parents_and_all_children__tree__take_their_level() -> None:
    """The two fixed rules differ in the split parent and share the leaf."""
    tree = RoiTree((WIDE, LONE), (PARTS, (LONE,)), VOLUME)
    assert set(all_parents(tree, CostModel(SLOT))) == {WIDE, LONE}
    assert set(all_children(tree, CostModel(SLOT))) == {*PARTS, LONE}


@pytest.mark.parametrize("name", RULES)
@given(tree=trees(), cost_model=cost_models)
@settings(max_examples=50, deadline=None)
def test_rules__any_tree__select_validly_and_repeatably(name, tree, cost_model) -> None:
    """Every rule returns a valid selection, and the same one again; along the curve, unless its order is random."""
    rule: Assigner = RULES[name]
    selection = rule(tree, cost_model)
    check_selection(tree, selection)
    assert name == "random" or selection == in_space_order(selection, cost_model.slot)
    assert rule(tree, cost_model) == selection


def test_rules__registry__has_the_documented_names() -> None:
    """Configurations refer to the rules by these names."""
    assert dict(RULES) == {
        "all_parents": all_parents,
        "all_children": all_children,
        "greedy": greedy,
        "top_k": top_k,
        "random": random_rule,
    }


# --- rules to compare with


def scored(*scores: float) -> RoiTree:
    """Leaves in a row with these scores."""
    leaves = tuple(Roi(Box.of((0, 0, 8 * index), SLOT), score, 1.0) for index, score in enumerate(scores))
    return RoiTree(leaves, tuple((leaf,) for leaf in leaves), VOLUME)


@pytest.mark.parametrize(
    ("keep", "expected"), [(None, {1, 3, 4}), (1, {3}), (2, {1, 3}), (4, {0, 1, 3, 4}), (9, {0, 1, 2, 3, 4})]
)
def test_top_k__five_leaves__takes_the_highest_scores(keep, expected) -> None:
    """As many as wanted, by default three of five."""
    tree = scored(0.2, 0.7, 0.1, 0.9, 0.5)
    chosen = top_k(tree, CostModel(SLOT, keep=keep))
    assert {tree.parents.index(roi) for roi in chosen} == expected


@relaxed
@given(trees(), st.none() | st.integers(1, 8))
def test_top_k__any_tree__leaves_out_no_parent_that_scores_higher(tree, keep) -> None:
    """It keeps the wanted number of parents, and whoever is out scores no higher than whoever is in."""
    graded = {roi: replace(roi, score=roi.mass / 100) for roi in tree.rois}
    families = tuple(tuple(graded[roi] for roi in family) for family in tree.children)
    tree = RoiTree(tuple(graded[roi] for roi in tree.parents), families, tree.volume)
    chosen = set(top_k(tree, CostModel(SLOT, keep=keep)))
    out = set(tree.parents) - chosen
    assert chosen <= set(tree.parents)
    assert len(chosen) == min(len(tree.parents), -(-len(tree.parents) // 2) if keep is None else keep)
    assert max((roi.score for roi in out), default=0) <= min((roi.score for roi in chosen), default=1)


def test_top_k__equal_scores__takes_the_greater_mass_then_the_first_box() -> None:
    """The result depends on nothing but the tree's regions."""
    light, heavy, also = (Roi(Box.of((0, 0, x), SLOT), 0.5, mass) for x, mass in ((0, 1.0), (8, 9.0), (16, 9.0)))
    for order in ((light, heavy, also), (also, heavy, light)):
        tree = RoiTree(order, tuple((roi,) for roi in order), VOLUME)
        assert top_k(tree, CostModel(SLOT, keep=1)) == (heavy,)
        assert set(top_k(tree, CostModel(SLOT, keep=2))) == {heavy, also}


def many_families(count: int) -> RoiTree:
    """As many parents of two, and leaves, in turn."""
    parents, children = [], []
    for index in range(count):
        for offset, parts in ((0, PARTS), (1, (LONE,))):
            moved = tuple(Roi(part.box.shift((64 * (2 * index + offset), 0, 0)), 0.5, 1.0) for part in parts)
            children.append(moved)
            hull = moved[0].box.hull(moved[-1].box)
            parents.append(Roi(hull, 0.5, 1.0) if len(moved) > 1 else moved[0])
    return RoiTree(tuple(parents), tuple(children), (128 * count, 64, 64))


def test_random_rule__many_families__is_fair() -> None:
    """Of 1500 families a third each takes the parent, the children, nothing; of as many leaves half are taken."""
    tree = many_families(1500)
    chosen = set(random_rule(tree, CostModel(SLOT)))
    ways: Counter[str] = Counter()
    for index, (parent, children) in enumerate(zip(tree.parents, tree.children, strict=True)):
        taken = sum(child in chosen for child in children)
        if tree.is_leaf(index):
            ways["leaf"] += taken
        else:
            assert taken in (0, 2)
            ways["parent" if parent in chosen else "children" if taken else "nothing"] += 1
    # Four standard deviations are 73 of 1500 at a third, and 77 at a half.
    assert all(abs(ways[name] - 500) < 73 for name in ("parent", "children", "nothing"))
    assert abs(ways["leaf"] - 750) < 77


def test_random_rule__order__is_random_and_depends_on_the_boxes_only() -> None:
    """Scores and the cost model change nothing; another place of the boxes does, and the order follows no curve."""
    tree = many_families(30)
    chosen = random_rule(tree, CostModel(SLOT))
    assert chosen != in_space_order(chosen, SLOT)
    other = RoiTree(
        tuple(replace(roi, score=0.1) for roi in tree.parents),
        tuple(tuple(replace(roi, score=0.1) for roi in family) for family in tree.children),
        tree.volume,
    )
    assert [roi.box for roi in random_rule(other, CostModel((4, 4, 4), 0.5))] == [roi.box for roi in chosen]
    shifted = RoiTree(
        tuple(replace(roi, box=roi.box.shift((1, 0, -3))) for roi in tree.parents),
        tuple(tuple(replace(roi, box=roi.box.shift((1, 0, -3))) for roi in family) for family in tree.children),
        tree.volume,
    )
    assert [roi.box.shift((-1, 0, 3)) for roi in random_rule(shifted, CostModel(SLOT))] != [roi.box for roi in chosen]


# --- order


@pytest.mark.parametrize("slot", [(8, 8, 8), (2, 16, 16)])
def test_in_space_order__lattice_of_slots__fills_blocks_of_eight(slot) -> None:
    """Each eight slots in a row form one 2 x 2 x 2 block, where scan order would give rows of four."""
    lattice = [
        roi(tuple(i * edge for i, edge in zip(index, slot, strict=True)), slot) for index in product(range(4), repeat=3)
    ]
    random.Random(0).shuffle(lattice)
    ordered = in_space_order(lattice, slot)
    for first in range(0, 64, 8):
        hull = ordered[first].box
        for other in ordered[first + 1 : first + 8]:
            hull = hull.hull(other.box)
        assert hull.shape == tuple(2 * edge for edge in slot)


@relaxed
@given(st.lists(st.tuples(*[st.integers(-50, 5000)] * 3), max_size=20), st.randoms(use_true_random=False))
def test_in_space_order__any_order_of_input__follows_the_curve(starts, shuffler) -> None:
    """Sorting by interleaved bits, written out as strings, gives the same order for every permutation."""
    rois = [roi(start, (8, 8, 8), mass=number) for number, start in enumerate(starts)]

    def interleaved(item: Roi) -> str:
        eighths_of_a_slot = [max(start + 4, 0) for start in item.box.start]
        bits = [format(cell, "021b") for cell in eighths_of_a_slot]
        return "".join(z + y + x for z, y, x in zip(*bits, strict=True))

    expected = sorted(rois, key=lambda item: (interleaved(item), item.box, item.mass))
    shuffler.shuffle(rois)
    assert in_space_order(rois, (8, 8, 8)) == tuple(expected)
