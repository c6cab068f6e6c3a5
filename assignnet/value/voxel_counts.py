"""What processing regions yields, counted so that the quality of any selection of them can be computed.

Voxels that have the same true label, the same label outside of all regions, and the same labels in the same regions
behave alike whatever is selected. They are counted together, one row per kind, which makes a few thousand rows of a
volume of millions of voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["dice", "iou"]
Counts = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Confusion:
    """Found beside true voxels of each class, each of shape (classes,).

    Attributes:
        common: Rightly found.
        found: Found, rightly or not.
        true: In the reference.
    """

    common: Counts
    found: Counts
    true: Counts

    def quality(self, metric: Metric) -> float:
        """Dice or IoU, the mean over classes; 1 for a class that neither side has.

        >>> Confusion(np.array([3.0]), np.array([4.0]), np.array([4.0])).quality("dice")
        0.75
        """
        union = self.found + self.true - self.common
        above, below = (2 * self.common, self.found + self.true) if metric == "dice" else (self.common, union)
        return float(np.where(below > 0, above / np.where(below > 0, below, 1.0), 1.0).mean())


@dataclass(frozen=True, slots=True, eq=False)
class VoxelCounts:
    """Voxels by the labels that every region of a tree yields, and by the true ones.

    Row r stands for ``count[r]`` voxels. Which regions hold them, and what each yields there, is in the entries
    ``start[r]:start[r + 1]`` of ``node`` and ``label``.

    Attributes:
        count: Voxels of each row, shape (rows,).
        truth: True label, shape (rows,).
        outside: Label if no selected region holds the voxel, shape (rows,).
        start: First entry of each row, and the number of entries, shape (rows + 1,).
        node: Region, as index into ``RoiTree.rois``, shape (entries,).
        label: Label that it yields, shape (entries,).
        classes: Labels that count, all but the background.
    """

    count: NDArray[np.int64]
    truth: NDArray[np.uint16]
    outside: NDArray[np.uint16]
    start: NDArray[np.int64]
    node: NDArray[np.int64]
    label: NDArray[np.uint16]
    classes: tuple[int, ...]

    def confusion(self, chosen: NDArray[np.bool_], *, disputed: float | None = None) -> Confusion:
        """What a selection finds, rightly or not, of each class.

        Overlapping results are blended. Where they agree the blend agrees with them. Where they do not, it is taken
        that each region's label has an equal share of the voxel.

        Args:
            chosen: Selected regions, shape (regions,).
            disputed: Give disputed voxels to the right label (1.0) or to a wrong one (0.0) instead: the bounds of what
                any blend of the labels can yield.
        """
        rows = len(self.count)
        row = np.repeat(np.arange(rows), np.diff(self.start))
        taken = chosen[self.node]
        row, label = row[taken], self.label[taken]
        covers = np.bincount(row, minlength=rows)
        common, found, true = (np.zeros(len(self.classes)) for _ in range(3))
        for index, name in enumerate(self.classes):
            votes = np.bincount(row[label == name], minlength=rows)
            share = np.where(covers > 0, votes / np.maximum(covers, 1), self.outside == name)
            is_true = self.truth == name
            if disputed is not None:
                wanted = is_true if disputed else ~is_true
                share = np.where((share > 0) & (share < 1), wanted, share)
            voxels = self.count * share
            common[index], found[index] = voxels[is_true].sum(), voxels.sum()
            true[index] = self.count[is_true].sum()
        return Confusion(common, found, true)

    def quality(self, chosen: NDArray[np.bool_], metric: Metric) -> float:
        """Quality of a selection; exact where no selected regions disagree (see ``bounds``)."""
        return self.confusion(chosen).quality(metric)

    def bounds(self, chosen: NDArray[np.bool_], metric: Metric) -> tuple[float, float]:
        """The least and the greatest quality that blending of overlapping results can give."""
        least, greatest = (self.confusion(chosen, disputed=share).quality(metric) for share in (0.0, 1.0))
        return least, greatest

    def alone(self, regions: int) -> tuple[Counts, Counts]:
        """What each region adds if it alone is selected: voxels rightly found, and voxels found; (regions, classes).

        Relative to what lies outside of all regions, so both may be negative.
        """
        row = np.repeat(np.arange(len(self.count)), np.diff(self.start))
        common, found = np.zeros((regions, len(self.classes))), np.zeros((regions, len(self.classes)))
        for index, name in enumerate(self.classes):
            change = (self.label == name).astype(np.int64) - (self.outside[row] == name)
            voxels = change * self.count[row]
            found[:, index] = np.bincount(self.node, voxels, minlength=regions)
            common[:, index] = np.bincount(self.node, voxels * (self.truth[row] == name), minlength=regions)
        return common, found


def count_outcomes(
    truth: NDArray[np.unsignedinteger],
    outside: NDArray[np.unsignedinteger],
    results: list[tuple[tuple[slice, slice, slice], NDArray[np.unsignedinteger]]],
    classes: tuple[int, ...],
) -> VoxelCounts:
    """Count voxels by true label, label outside, and labels in the regions that hold them.

    Args:
        truth: True labels, shape (z, y, x).
        outside: Labels outside of all regions, same shape.
        results: For each region of the tree, in the order of ``RoiTree.rois``, where its voxels lie and its labels.
        classes: Labels that count.

    >>> truth, nothing = np.uint8([[[1, 1, 0]]]), np.zeros((1, 1, 3), np.uint8)
    >>> whole = (slice(0, 1), slice(0, 1), slice(0, 2))
    >>> outcomes = count_outcomes(truth, nothing, [(whole, np.uint8([[[1, 0]]]))], (1,))
    >>> outcomes.quality(np.array([True]), "dice"), outcomes.quality(np.array([False]), "dice")
    (0.6666666666666666, 0.0)
    """
    # Each voxel gets the number of its kind; every region splits the kinds that it holds.
    names, kinds = _number(truth, outside)
    described: list[tuple[int, int, tuple[tuple[int, int], ...]]] = [(true, apart, ()) for true, apart in names]
    for node, (where, labels) in enumerate(results):
        pairs, numbers = _number(kinds[where], labels)
        kinds[where] = numbers + len(described)
        described += [(*described[kind][:2], (*described[kind][2], (node, label))) for kind, label in pairs]
    count = np.bincount(kinds.reshape(-1), minlength=len(described))
    # A voxel that is background everywhere changes nothing.
    rows = [r for r in np.flatnonzero(count).tolist() if any(described[r][:2]) or any(c for _, c in described[r][2])]
    kept = [described[row] for row in rows]
    entries = [entry for _, _, held in kept for entry in held]
    return VoxelCounts(
        count[rows],
        np.array([true for true, _, _ in kept], np.uint16),
        np.array([apart for _, apart, _ in kept], np.uint16),
        np.cumsum([0, *(len(held) for _, _, held in kept)], dtype=np.int64),
        np.array([node for node, _ in entries], np.int64),
        np.array([label for _, label in entries], np.uint16),
        classes,
    )


def _number(first: NDArray[np.integer], second: NDArray[np.integer]) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
    """Number the pairs of values that two arrays have in the same places: the pairs, and their numbers."""
    base = int(second.max(initial=0)) + 1
    pairs = first.astype(np.int64) * base + second
    found = np.flatnonzero(np.bincount(pairs.reshape(-1)))
    number = np.zeros(int(found.max(initial=0)) + 1, np.int64)
    number[found] = np.arange(len(found))
    return [divmod(pair, base) for pair in found.tolist()], number[pairs]
