"""Small instances with real counted outcomes, for the tests of choosing."""

from __future__ import annotations

import numpy as np

from assignnet.choice.cost_model import CostModel
from assignnet.choice.tree import Features, Roi, RoiTree
from assignnet.value.instance import Instance
from assignnet.value.voxel_counts import count_outcomes
from canvas import Box, Triple

CELL = 12
"""Edge of the cell of one family in voxels."""


def random_tree(random: np.random.Generator, families: int, side: int = 3) -> RoiTree:
    """Families in separate cells of a volume of ``side`` cells per axis, with one to three children each."""
    parents, children = [], []
    for cell in random.permutation(side**3)[:families]:
        origin = CELL * np.array(np.unravel_index(cell, (side,) * 3))
        edge = int(random.integers(2, 7))
        starts = {tuple(random.integers(0, CELL - edge, 3).tolist()) for _ in range(random.integers(1, 4))}
        boxes = [Box.of((origin + start).tolist(), (edge,) * 3) for start in sorted(starts)]
        family = tuple(Roi(box, *random.uniform(0.1, 1, 2).tolist()) for box in boxes)
        hull = boxes[0]
        for box in boxes[1:]:
            hull = hull.hull(box)
        parents.append(Roi(hull, 0.9, sum(roi.mass for roi in family)) if len(family) > 1 else family[0])
        children.append(family)
    volume: Triple = (side * CELL,) * 3
    return RoiTree(tuple(parents), tuple(children), volume)


def random_instance(
    seed: int, families: int = 5, *, features: int = 0, volume: int = 0, budget: float | None = None, side: int = 3
) -> Instance:
    """An instance whose regions find most of two classes, some less and at different costs."""
    random = np.random.default_rng(seed)
    tree = random_tree(random, families, side)
    truth = random.integers(0, 3, tree.volume, dtype=np.uint8)
    outside = np.where(random.random(tree.volume) < 0.1, truth, 0).astype(np.uint8)
    results = []
    for roi in tree.rois:
        where = roi.box.slices
        wrong = random.random(truth[where].shape) < random.uniform(0, 0.6)
        results.append((where, np.where(wrong, random.integers(0, 3), truth[where]).astype(np.uint8)))
    seen = Features(
        random.normal(size=(len(tree.rois), features)).astype(np.float32),
        random.normal(size=volume).astype(np.float32),
    )
    cost_model = CostModel(slot=(6, 6, 6), context=(1, 1, 1), native=(5, 5, 5), budget=budget)
    outcomes = count_outcomes(truth, outside, results, (1, 2))
    return Instance(f"case_{seed}/0", f"case_{seed}", tree, cost_model, seen, outcomes, 0.01)


def line(gap: int = 0) -> Instance:
    """A line of 8 voxels with 4 true ones: a parent over voxels 0-3, its halves, and a leaf over 6-7.

    Slots: every region costs one. Found rightly / found: left half 2 / 2, right half 0 / 1, their parent 1 / 2 and
    the leaf 2 / 2. Nothing is found outside.
    """
    truth = np.uint8([[[1, 1, 0, 0, *[0] * gap, 0, 0, 1, 1]]])
    left, right = (Roi(Box((0, 0, x), (1, 1, x + 2)), 0.9, 1.0) for x in (0, 2))
    whole, leaf = Roi(Box((0, 0, 0), (1, 1, 4)), 0.9, 2.0), Roi(Box((0, 0, 6 + gap), (1, 1, 8 + gap)), 0.8, 1.0)
    tree = RoiTree((whole, leaf), ((left, right), (leaf,)), (1, 1, 8 + gap))
    labels = {whole: [0, 1, 1, 0], left: [1, 1], right: [0, 1], leaf: [1, 1]}
    results = [(roi.box.slices, np.uint8([[labels[roi]]])) for roi in tree.rois]
    outcomes = count_outcomes(truth, np.zeros_like(truth), results, (1,))
    return Instance("line/0", "line", tree, CostModel(slot=(1, 1, 2)), Features(), outcomes, 0.5)
