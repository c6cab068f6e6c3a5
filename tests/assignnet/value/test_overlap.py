"""The best selection of boxes that overlap, beside voxels that are painted and a search through all selections."""

from __future__ import annotations

from dataclasses import dataclass
from time import process_time

import numpy as np
import pytest
from counted_trees import CountedTree, every_selection, is_valid
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from assignnet.value.additive_tree import AdditiveTree
from assignnet.value.overlap import _Moves, box_shares, solve_overlapping
from assignnet.value.solver import solve
from canvas import Box

relaxed = settings(deadline=None, max_examples=150)
seeds = st.integers(0, 1 << 32)
SIDE = 10


@dataclass(frozen=True)
class Case(CountedTree):
    """Counts of a tree, the boxes that shares come from, and the shares as they are painted."""

    boxes: list[Box]
    shares: NDArray[np.float64]

    def solve(self, *, overlap: bool = True) -> NDArray[np.bool_]:
        return solve_overlapping(self.sums(), box_shares(self.boxes)) if overlap else solve(self.sums())

    @property
    def exclude(self) -> NDArray[np.bool_]:
        """Regions that no selection has both of."""
        own = self.parent[:, None] == np.arange(len(self.parent))
        return (own | own.T) & ~np.eye(len(own), dtype=bool)

    def reward(self, chosen: NDArray[np.bool_]) -> float:
        """What the objective says, region by region; -inf over the budget."""
        rows = np.flatnonzero(chosen)
        spent = self.cost[rows].sum()
        if self.budget is not None and spent > self.budget + 1e-9:
            return -np.inf
        quality = []
        for index, true in enumerate(self.true):
            held = [1 / (1 + sum(self.shares[row, other] for other in rows if other != row)) for row in rows]
            common = sum(part * self.common[row, index] for part, row in zip(held, rows, strict=True))
            found = sum(part * self.found[row, index] for part, row in zip(held, rows, strict=True))
            union = found + true - common
            above, below = (2 * common, found + true) if self.metric == "dice" else (common, union)
            quality.append(above / below if below > 0 else 1.0)
        return float(np.mean(quality) - self.weight * spent)

    @property
    def best(self) -> float:
        return max(map(self.reward, every_selection(self.parent)))


def painted_shares(boxes: list[Box]) -> NDArray[np.float64]:
    """The definition, voxel by voxel; boxes may reach out of the volume by its edge."""
    masks = np.zeros((len(boxes), *[3 * SIDE] * 3), bool)
    for mask, box in zip(masks, boxes, strict=True):
        mask[box.shift((SIDE,) * 3).slices] = True
    flat = masks.reshape(len(boxes), -1).astype(float)
    shares = flat @ flat.T / np.maximum(flat.sum(axis=1), 1)[:, None]
    np.fill_diagonal(shares, 0)
    return shares


def case(seed: int, regions: int, *, apart: bool = False) -> Case:
    """Families of boxes: crowded, or (``apart``) no two that may be selected together share a voxel."""
    random = np.random.default_rng(seed)
    parent: list[int] = []
    boxes: list[Box] = []
    while len(parent) < regions:
        head, left = len(parent), regions - len(parent)
        children = int(random.integers(2, min(3, left - 1) + 1)) if left >= 3 and random.random() < 0.5 else 0
        family: list[Box] = []
        for child in range(max(children, 1)):
            edges = random.integers(2, 6, 3)
            start = random.integers(-1, SIDE - edges)
            if apart:  # in cells of their own along the first axis
                start[0], edges[0] = 4 * (head + child) - SIDE, 3
            family.append(Box.of(start.tolist(), edges.tolist()))
        if children:
            hull = family[0]
            for box in family[1:]:
                hull = hull.hull(box)
            family = [hull, *family]
        boxes += family
        parent += [head] * len(family)
    classes = int(random.integers(1, 3))
    volume = np.array([box.volume for box in boxes])[:, None]
    found = np.ceil(random.uniform(0.1, 0.9, (regions, classes)) * volume)
    common = np.floor(random.uniform(0, 1, (regions, classes)) * found)
    cost = random.uniform(0.05, 1, regions)
    return Case(
        np.array(parent),
        common,
        found,
        common.sum(axis=0) + random.integers(0, 20, classes),
        cost / cost.sum(),
        float(random.choice([0.0, 0.05, 0.3, 1.0])),
        str(random.choice(["dice", "iou"])),
        float(random.uniform(0, 1)) if random.random() < 0.4 else None,
        boxes,
        painted_shares(boxes),
    )


@st.composite
def some_boxes(draw: st.DrawFn) -> list[Box]:
    edge, start = st.integers(0, 7), st.integers(-SIDE, SIDE)
    one = st.builds(Box.of, st.tuples(start, start, start), st.tuples(edge, edge, edge))
    return draw(st.lists(one, min_size=1, max_size=5))


@relaxed
@given(some_boxes())
def test_box_shares__any_boxes__are_those_of_painted_voxels(boxes: list[Box]) -> None:
    """Also for boxes that are equal, empty, or reach out of the volume."""
    np.testing.assert_allclose(box_shares(boxes), painted_shares(boxes), atol=1e-12)


@pytest.mark.long
@relaxed
@given(seeds, st.integers(1, 7))
def test_solve_overlapping__crowded_boxes__is_valid_and_between_solve_and_the_best(seed: int, regions: int) -> None:
    """What is selected may be, is within the budget, and earns no less than without a look at overlaps."""
    drawn = case(seed, regions)
    chosen = drawn.solve()
    assert is_valid(drawn.parent, chosen)
    reward = drawn.reward(chosen)
    assert reward > -np.inf, "the budget is kept"
    assert drawn.reward(drawn.solve(overlap=False)) - 1e-9 <= reward <= drawn.best + 1e-9


@pytest.mark.long
def test_solve_overlapping__hundred_crowds__is_the_best_in_most() -> None:
    """A local search, yet 95 of 100 are the best, none is far from it, and ``solve`` alone loses ten times as much."""
    short, blind = [], []
    for seed in range(100):
        drawn = case(seed, 7)
        best = drawn.best
        short.append(best - drawn.reward(drawn.solve()))
        blind.append(best - drawn.reward(drawn.solve(overlap=False)))
    assert np.sum(np.array(short) < 1e-9) >= 95
    assert np.mean(short) < 0.1 * np.mean(blind)
    assert max(short) < 0.02


@relaxed
@given(seeds, st.integers(1, 12))
@pytest.mark.long
def test_solve_overlapping__nothing_shared__is_solve(seed: int, regions: int) -> None:
    """Only a parent and its own children overlap, which are never selected together."""
    drawn = case(seed, regions, apart=True)
    assert drawn.solve().tolist() == drawn.solve(overlap=False).tolist()


@pytest.mark.parametrize(("weight", "selected"), [(0.0, 2), (0.3, 1)])
def test_solve_overlapping__two_boxes_over_the_same_object__takes_one_if_the_other_costs(
    weight: float, selected: int
) -> None:
    """Each box finds the whole object; ``solve`` believes that both are needed."""
    counts = np.array([[50.0], [50.0]])
    sums = AdditiveTree.of(np.array([0, 1]), counts, counts, np.array([100.0]), np.array([0.5, 0.5]), weight, "dice")
    boxes = [Box.of((0, 0, 0), (5, 5, 5)), Box.of((0, 0, 1), (5, 5, 5))]
    assert solve(sums).sum() == 2
    assert solve_overlapping(sums, box_shares(boxes)).sum() == selected


def test_solve_overlapping__no_region__selects_nothing() -> None:
    """An empty tree has an empty selection."""
    none = np.zeros((0, 1))
    sums = AdditiveTree.of(np.zeros(0, int), none, none, np.array([8.0]), np.zeros(0), 0.1, "dice")
    assert solve_overlapping(sums, box_shares([])).shape == (0,)


@relaxed
@given(seeds, st.integers(1, 12), st.lists(st.integers(0, 11), max_size=6))
def test_moves__any_sequence__know_what_every_next_move_is_worth(seed: int, regions: int, sequence: list[int]) -> None:
    """What is kept up to date move by move is what the definition says of each selection that a move leads to."""
    drawn = case(seed, regions)
    moves = _Moves(drawn.sums(), box_shares(drawn.boxes), drawn.exclude, np.zeros(regions, bool))
    expected = np.zeros(regions, bool)
    for move in [None, *(number % regions for number in sequence)]:
        if move is not None:
            moves.take(move)
            expected = reached(drawn, expected, move)
            np.testing.assert_array_equal(moves.chosen, expected)
        wanted = [drawn.reward(reached(drawn, expected, other)) for other in range(regions)]
        np.testing.assert_allclose(moves.rewards(), wanted, atol=1e-9)
        np.testing.assert_allclose(moves.reward, drawn.reward(expected), atol=1e-9)


def reached(drawn: Case, chosen: NDArray[np.bool_], move: int) -> NDArray[np.bool_]:
    """A selection with one region more or less; one that is added drives out its parent and its children."""
    after = chosen.copy() if chosen[move] else chosen & ~drawn.exclude[move]
    after[move] = not chosen[move]
    return after


@pytest.mark.alone
def test_solve_overlapping__1600_boxes__takes_seconds() -> None:
    """Rewards of moves are not computed from scratch: once that took minutes."""
    random = np.random.default_rng(0)
    boxes, parent = [], []
    while len(boxes) < 1600:
        corner = random.integers(0, 70, 3)
        family = [Box.of((corner + random.integers(-6, 7, 3)).tolist(), random.integers(4, 12, 3)) for _ in range(3)]
        parent += [len(boxes)] * 4
        boxes += [family[0].hull(family[1]).hull(family[2]), *family]
    volume = np.array([box.volume for box in boxes])[:, None]
    found = np.ceil(random.uniform(0.1, 0.9, volume.shape) * volume)
    common = np.floor(random.uniform(0, 1, volume.shape) * found)
    cost = random.uniform(0.05, 1, len(boxes))
    sums = AdditiveTree.of(np.array(parent), common, found, common.sum(axis=0) / 2, cost / cost.sum(), 0.1, "dice")
    start = process_time()
    chosen = solve_overlapping(sums, box_shares(boxes))
    assert process_time() - start < 40
    assert chosen.sum() > 100
