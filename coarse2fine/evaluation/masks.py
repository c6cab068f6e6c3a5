"""How well two masks agree: overlap and distances between surfaces, with a defined answer for empty masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

__all__ = ["Metric", "Surfaces", "dice", "hd95", "iou", "leave_out", "mean_over_labels", "surface_dice"]

Mask = NDArray[np.bool_]
Metric = Callable[[Mask, Mask], float]

# Spacings come from files in single precision: a distance that differs from the tolerance by less than this share of
# it is the tolerance itself.
ROUNDING = 1e-6


def dice(prediction: Mask, reference: Mask) -> float:
    """Twice the common voxels over the sum of both masks' voxels; also called F1.

    Two empty masks agree perfectly: 1. If only one is empty, the answer is 0.

    Args:
        prediction: Boolean, any shape.
        reference: Boolean, of the same shape.

    Returns:
        From 0 (nothing in common) to 1 (equal).

    Raises:
        ValueError: If shapes differ or a mask is not boolean.

    Example:
        >>> dice(np.array([True, True, False]), np.array([True, False, False]))
        0.6666666666666666
        >>> dice(np.zeros(3, bool), np.zeros(3, bool))
        1.0
    """
    common, predicted, referred = _counts(prediction, reference)
    return 2 * common / (predicted + referred) if predicted + referred else 1.0


def iou(prediction: Mask, reference: Mask) -> float:
    """Common voxels over the voxels in either mask: intersection over union, the Jaccard index.

    Arguments, range, errors and the answers for empty masks are those of :func:`dice`.

    Example:
        >>> iou(np.array([True, True, False]), np.array([True, False, False]))
        0.5
    """
    common, predicted, referred = _counts(prediction, reference)
    union = predicted + referred - common
    return common / union if union else 1.0


@dataclass(frozen=True, slots=True)
class Surfaces:
    """Distances between the surfaces of two masks, measured once for all metrics that need them.

    A voxel of a mask belongs to its surface if one of its direct neighbours (6 in 3D) is not in the mask. Beyond the
    volume's border there is no mask, so that voxels at the border are surface. A distance is that of a voxel's centre
    to the nearest centre on the other surface. MONAI defines both in the same way.

    Attributes:
        to_reference: From each surface voxel of the prediction, in the unit of the spacing; infinite if there is no
            reference. Shape (surface voxels of the prediction,).
        to_prediction: From each surface voxel of the reference, likewise.
    """

    to_reference: NDArray[np.float64]
    to_prediction: NDArray[np.float64]

    @classmethod
    def between(cls, prediction: Mask, reference: Mask, spacing: Sequence[float]) -> Surfaces:
        """Measure the distances between two masks.

        Time and memory follow the boxes around the masks and the number of surface voxels, not the volume.

        Args:
            prediction: Boolean, any number of dimensions, usually (z, y, x).
            reference: Boolean, of the same shape.
            spacing: Distance of neighbouring voxels along each axis, usually (z, y, x) in mm or nm.

        Raises:
            ValueError: If shapes differ, a mask is not boolean, or the spacing is not one positive number per axis.
        """
        _check(prediction, reference)
        if len(spacing) != prediction.ndim or not all(math.isfinite(step) and step > 0 for step in spacing):
            raise ValueError(f"spacing must be {prediction.ndim} positive numbers, not {tuple(spacing)}")
        predicted, referred = (_surface(mask) * np.asarray(spacing, float) for mask in (prediction, reference))
        return cls(_distances(predicted, referred), _distances(referred, predicted))

    def hd95(self) -> float:
        """See :func:`hd95`."""
        directions = (self.to_reference, self.to_prediction)
        if not all(distances.size for distances in directions):
            return math.inf if any(distances.size for distances in directions) else 0.0
        return max(float(np.percentile(distances, 95)) for distances in directions)

    def surface_dice(self, tolerance: float) -> float:
        """See :func:`surface_dice`."""
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise ValueError(f"tolerance must be a finite number that is not negative, not {tolerance}")
        reach = tolerance * (1 + ROUNDING)
        near = np.count_nonzero(self.to_reference <= reach) + np.count_nonzero(self.to_prediction <= reach)
        total = self.to_reference.size + self.to_prediction.size
        return int(near) / total if total else 1.0


def hd95(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> float:
    """The 95th percentile of the Hausdorff distance: the larger of the percentiles of both directions.

    95 % of the prediction's surface voxels lie no farther than this from the reference's surface, and the other way
    round. The percentiles are interpolated linearly, and not pooled: MONAI's definition. :class:`Surfaces` says what a
    surface is.

    Two empty masks agree perfectly: 0. If only one is empty, the answer is infinite, which JSON cannot hold.

    Arguments and errors are those of :meth:`Surfaces.between`.

    Returns:
        A distance in the unit of the spacing; 0 for equal masks.

    Example:
        >>> hd95(np.array([[True, False, False]]), np.array([[False, False, True]]), (5, 0.5))
        1.0
    """
    return Surfaces.between(prediction, reference, spacing).hd95()


def surface_dice(prediction: Mask, reference: Mask, spacing: Sequence[float], tolerance: float) -> float:
    """The share of both masks' surface voxels that lie within a tolerance of the other surface.

    Also called normalised surface Dice or surface Dice at a tolerance. Each surface voxel counts as one, whatever area
    of the surface it holds: MONAI's definition without sub-voxels, which differs from DeepMind's.
    :class:`Surfaces` says what a surface is. A distance that equals the tolerance is within it.

    Two empty masks agree perfectly: 1. If only one is empty, the answer is 0.

    Arguments and errors are those of :meth:`Surfaces.between`; ``tolerance`` is how far a surface may be off, in the
    unit of the spacing, and an error if it is negative or not finite.

    Returns:
        From 0 (no voxel is near) to 1 (all are).

    Example:
        >>> first, second = np.array([[True, False, True, False]]), np.array([[True, False, False, False]])
        >>> surface_dice(first, second, (5, 0.5), tolerance=0.5), surface_dice(first, second, (5, 0.5), tolerance=1)
        (0.6666666666666666, 1.0)
    """
    return Surfaces.between(prediction, reference, spacing).surface_dice(tolerance)


def leave_out(labels: NDArray[Any], reference: NDArray[Any], ignore: int | None) -> NDArray[Any]:
    """Label maps without voxels on which nobody has decided: there they have the background.

    Whatever is compared with the reference is so, and the reference itself: then these voxels are in no mask of a
    label, neither rightly nor wrongly, as in nnU-Net's evaluation.

    Args:
        labels: Label map, any shape; it stays as it is.
        reference: Of the same shape.
        ignore: The reference's value in such voxels, nnU-Net's label ``ignore``; None if there is none.

    Example:
        >>> leave_out(np.array([1, 1, 0]), np.array([1, 2, 2]), ignore=2)
        array([1, 0, 0])
    """
    return labels if ignore is None else np.where(reference == ignore, 0, labels).astype(labels.dtype)


def mean_over_labels(
    metric: Metric,
    prediction: NDArray[np.integer[Any]],
    reference: NDArray[np.integer[Any]],
    labels: Iterable[int],
) -> float:
    """The mean of a metric over labels, each against everything else.

    A label that neither side has counts with what the metric says about two empty masks. If one label's distance is
    infinite, so is the mean.

    Args:
        metric: Such as :func:`dice`, or ``functools.partial(hd95, spacing=(5, 0.7, 0.7))``.
        prediction: Label map, any shape.
        reference: Label map of the same shape.
        labels: Which labels count; usually all but the background.

    Raises:
        ValueError: If shapes differ, or there is no label to average over.

    Example:
        >>> mean_over_labels(dice, np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0]), (1, 2))
        0.8333333333333333
    """
    scores = [metric(prediction == label, reference == label) for label in labels]
    if not scores:
        raise ValueError("no labels to average over")
    return sum(scores) / len(scores)


def _counts(prediction: Mask, reference: Mask) -> tuple[int, int, int]:
    """Voxels in both masks, in the first, and in the second."""
    _check(prediction, reference)
    predicted, referred = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    common = int(np.count_nonzero(prediction & reference)) if predicted and referred else 0
    return common, predicted, referred


def _check(prediction: Mask, reference: Mask) -> None:
    """Refuse what cannot be compared."""
    # Shapes that broadcast, or labels combined bit by bit (1 & 2 is 0), would give an answer, but a wrong one.
    if prediction.shape != reference.shape:
        raise ValueError(f"masks of shapes {prediction.shape} and {reference.shape} cannot be compared")
    if prediction.dtype != np.bool_ or reference.dtype != np.bool_:
        raise ValueError(f"masks must be boolean, not {prediction.dtype} and {reference.dtype}")


def _surface(mask: Mask) -> NDArray[np.int64]:
    """Indices of the voxels of a mask with a direct neighbour outside of it; shape (surface voxels, dimensions)."""
    box = _box(mask)
    if box is None:
        return np.zeros((0, mask.ndim), np.int64)
    crop = mask[box]
    inner = crop.copy()
    # Erosion, in less time than scipy's. The box's border is surface: outside of the box there is no mask.
    for axis in range(mask.ndim):
        kept, whole = np.moveaxis(inner, axis, 0), np.moveaxis(crop, axis, 0)
        kept[[0, -1]] = False
        kept[1:] &= whole[:-1]
        kept[:-1] &= whole[1:]
    return np.argwhere(crop & ~inner) + [side.start for side in box]


def _box(mask: Mask) -> tuple[slice, ...] | None:
    """The smallest box with all voxels of a mask."""
    box: tuple[slice, ...] = ()
    for axis in range(mask.ndim):
        # The box so far leaves fewer voxels to look at for the axes to come.
        others = tuple(other for other in range(mask.ndim) if other != axis)
        used = np.flatnonzero(mask[box].any(axis=others))
        if not used.size:
            return None
        box += (slice(int(used[0]), int(used[-1]) + 1),)
    return box


def _distances(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """From each point to the nearest of the others, infinite if there is none."""
    if not len(points) or not len(others):
        return np.full(len(points), math.inf)
    # A distance transform visits every voxel of the box, which takes longer unless nearly all of them are surface, and
    # far longer for small objects far apart. On a grid, these settings build and search a tree faster than scipy's own.
    tree = KDTree(others, leafsize=32, compact_nodes=False, balanced_tree=False)
    return tree.query(points)[0]
