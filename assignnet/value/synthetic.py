"""Made-up instances whose optimum is known, for tests and for first experiments with a network.

They are like what a coarse stage makes of a volume with many small objects: most regions stand alone, some are merged
into parents, some are false alarms, and what the heatmap says of a region only hints at what processing it yields.
Families share no voxels, nor do siblings, so counts add up, and ``solver`` and ``upper_bound`` apply.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from assignnet.choice.cost_model import CostModel
from assignnet.choice.tree import Features, Roi, RoiTree
from assignnet.value.instance import Instance
from assignnet.value.voxel_counts import VoxelCounts
from canvas.box import Box, Triple, triple

EDGE = 32
"""Edge of a slot in voxels."""
ROOM = 36
"""Edge of the cube in which a child lies, in voxels; larger than a slot, so that some children are shrunk too."""
CONTEXT = 8
"""Surroundings in same-scale packing, in voxels."""
SPLIT = 0.15
"""Probability that a family has several children."""
MOST_CHILDREN = 8
"""They lie in the eight corners of their family's cube."""
TYPICAL, SPREAD = 2500.0, 1.2
"""Median of the voxels of objects, and standard deviation of their logarithm."""
CLUSTERED = 0.3
"""False alarms are that much rarer among siblings than among regions that stand alone."""
MISSED = 0.05
"""Share of the true voxels that lie in no region, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A child: its box, what is in it, and what is found there if it is processed itself or with its parent.

    Attributes:
        box: The region.
        true: Voxels of the object.
        hits: Of those, how many are found by the child and by the parent.
        alarms: Other voxels found by the child and by the parent.
        score: As in ``Roi``.
        mass: As in ``Roi``.
    """

    box: Box
    true: int
    hits: tuple[int, int]
    alarms: tuple[int, int]
    score: float
    mass: float


def synthetic_instance(random: np.random.Generator, regions: int, *, features: int = 0) -> Instance:
    """Draw an instance with one class.

    Args:
        random: The same state gives the same instance.
        regions: Nodes of the tree.
        features: Numbers per region that tell, each with noise, how much the region really yields.

    Returns:
        The instance; a slot takes one second.

    Raises:
        ValueError: If there is to be less than one region.

    >>> instance = synthetic_instance(np.random.default_rng(0), 20, features=4)
    >>> len(instance.tree.rois), instance.features.nodes.shape
    (20, (20, 4))
    """
    if regions < 1:
        raise ValueError(f"an instance needs at least one region, not {regions}")
    cost_model = _cost_model(random)
    sizes = _families(random, regions)
    false_share = random.uniform(0.2, 0.6)
    side = int(np.ceil(np.cbrt(1.5 * len(sizes))))
    cells = random.permutation(side**3)[: len(sizes)]
    origins = np.stack(np.unravel_index(cells, (side,) * 3), axis=1) * 2 * ROOM
    families = [
        _family(random, cost_model, triple(origin), size, false_share)
        for origin, size in zip(origins, sizes, strict=True)
    ]
    tree = _tree(families, triple([2 * ROOM * side] * 3))
    outcomes = _outcomes(random, families)
    name = f"synthetic-{random.integers(1 << 32):08x}"
    seen = Features(_features(random, outcomes, regions, features))
    return Instance(name, name, tree, cost_model, seen, outcomes, seconds_per_slot=1.0)


def _cost_model(random: np.random.Generator) -> CostModel:
    """Same-size or same-scale packing."""
    slot = (EDGE, EDGE, EDGE)
    return (
        CostModel(slot)
        if random.random() < 0.5
        else CostModel(slot, native=(EDGE * 3 // 2,) * 3, context=(CONTEXT,) * 3)
    )


def _families(random: np.random.Generator, regions: int) -> list[int]:
    """Numbers of children, so that there are so many nodes in all."""
    sizes, left = [], regions
    while left:
        several = left >= 3 and random.random() < SPLIT
        sizes.append(int(random.integers(2, min(MOST_CHILDREN, left - 1) + 1)) if several else 1)
        left -= sizes[-1] + several
    return sizes


def _family(
    random: np.random.Generator, cost_model: CostModel, origin: Triple, size: int, false_share: float
) -> list[_Part]:
    """Children in different corners of a cube."""
    corners = np.stack(np.unravel_index(random.permutation(MOST_CHILDREN)[:size], (2, 2, 2)), axis=1)
    share = false_share * (CLUSTERED if size > 1 else 1.0)
    drafts = [_draft(random, triple(np.array(origin) + corner * ROOM), share) for corner in corners]
    hull = reduce(Box.hull, (box for box, _ in drafts))
    return [_part(random, cost_model, box, true, hull) for box, true in drafts]


def _draft(random: np.random.Generator, origin: Triple, false_share: float) -> tuple[Box, int]:
    """A box somewhere in its room, and the voxels of the object in it: none if it is a false alarm."""
    voxels = float(np.clip(random.lognormal(np.log(TYPICAL), SPREAD), 30, 40_000))
    fill = random.uniform(0.2, 0.6)
    edges = np.clip(np.cbrt(voxels / fill) * np.exp(random.normal(0, 0.15, 3)), 4, ROOM - 1).astype(int)
    box = Box.of(np.array(origin) + random.integers(0, ROOM - edges), edges)
    alarm = random.random() < false_share
    return box, 0 if alarm else max(1, int(min(voxels, fill * box.volume)))


def _part(random: np.random.Generator, cost_model: CostModel, box: Box, true: int, hull: Box) -> _Part:
    """What processing yields: less is found, and more of it wrongly, the more a box is shrunk."""
    difficulty, sharpness = random.beta(2, 6), random.uniform(0.0, 0.8)
    empty = box.volume - true
    hits, alarms = [], []
    # The same luck on both levels: what is hard to see is so at any size.
    stray = random.lognormal(-3.0, 1.0) if true or random.random() < 0.4 else 0.0
    for fidelity in (cost_model.fidelity(box), cost_model.fidelity(hull)):
        recall = (1 - difficulty) * fidelity**sharpness
        hits.append(int(true * recall))
        alarms.append(int(min(stray * (true or 0.5 * box.volume) * fidelity**-sharpness, 0.5 * empty)))
    belief = random.normal(1.0 if true else -0.5, 1.0) - difficulty
    score = 1 / (1 + np.exp(-belief))
    seen = (true or 0.3 * box.volume) * score * random.lognormal(0, 0.4)
    return _Part(box, true, (hits[0], hits[1]), (alarms[0], alarms[1]), float(score), float(min(seen, box.volume)))


def _tree(families: list[list[_Part]], volume: Triple) -> RoiTree:
    parents, children = [], []
    for family in families:
        rois = tuple(Roi(part.box, part.score, part.mass) for part in family)
        hull = reduce(Box.hull, (roi.box for roi in rois))
        several = Roi(hull, max(roi.score for roi in rois), sum(roi.mass for roi in rois))
        parents.append(several if len(rois) > 1 else rois[0])
        children.append(rois)
    return RoiTree(tuple(parents), tuple(children), volume)


def _outcomes(random: np.random.Generator, families: list[list[_Part]]) -> VoxelCounts:
    """Rows of all parts, and one of true voxels that no region holds."""
    count, truth, entries = [], [], []
    node = 0
    for family in families:
        above = node
        for part in family:
            node += len(family) > 1
            for right, total, found in ((1, part.true, part.hits), (0, part.box.volume - part.true, part.alarms)):
                for voxels, labels in _kinds(total, found, alone=len(family) == 1):
                    if voxels and (right or any(labels)):
                        count.append(voxels)
                        truth.append(right)
                        entries.append(list(zip((node, above), labels, strict=False)))
        node += 1
    count.append(int(sum(part.true for family in families for part in family) * random.uniform(0, MISSED)) + 1)
    truth.append(1)
    entries.append([])
    flat = [entry for row in entries for entry in row]
    return VoxelCounts(
        np.array(count, np.int64),
        np.array(truth, np.uint16),
        np.zeros(len(count), np.uint16),
        np.cumsum([0, *map(len, entries)], dtype=np.int64),
        np.array([index for index, _ in flat], np.int64),
        np.array([label for _, label in flat], np.uint16),
        (1,),
    )


def _kinds(total: int, found: tuple[int, int], *, alone: bool) -> list[tuple[int, tuple[int, ...]]]:
    """Voxels by what the child and the parent make of them: what one finds, the other finds too as far as it can."""
    child, parent = found
    if alone:
        return [(child, (1,)), (total - child, (0,))]
    both = min(child, parent)
    rest = total - child - parent + both
    return [(both, (1, 1)), (child - both, (1, 0)), (parent - both, (0, 1)), (rest, (0, 0))]


def _features(random: np.random.Generator, outcomes: VoxelCounts, regions: int, width: int) -> NDArray[np.float32]:
    """Each number is a fixed share of the same hint, with noise of its own."""
    common, found = outcomes.alone(regions)
    gain = 2 * common[:, 0] - found[:, 0]
    hint = np.sign(gain) * np.log1p(np.abs(gain)) / np.log(TYPICAL)
    return (np.outer(hint, np.cos(np.arange(width))) + random.normal(0, 1, (regions, width))).astype(np.float32)
