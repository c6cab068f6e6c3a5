"""How well two masks agree: overlap measures with a defined answer for empty masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Metric", "dice", "iou", "mean_over_labels"]

Mask = NDArray[np.bool_]
Metric = Callable[[Mask, Mask], float]


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

    Two empty masks agree perfectly: 1. If only one is empty, the answer is 0.

    Args:
        prediction: Boolean, any shape.
        reference: Boolean, of the same shape.

    Returns:
        From 0 (nothing in common) to 1 (equal).

    Raises:
        ValueError: If shapes differ or a mask is not boolean.

    Example:
        >>> iou(np.array([True, True, False]), np.array([True, False, False]))
        0.5
    """
    common, predicted, referred = _counts(prediction, reference)
    union = predicted + referred - common
    return common / union if union else 1.0


def mean_over_labels(
    metric: Metric,
    prediction: NDArray[np.integer[Any]],
    reference: NDArray[np.integer[Any]],
    labels: Iterable[int],
) -> float:
    """The mean of a metric over labels, each against everything else.

    A label that neither side has counts with what the metric says about two empty masks.

    Args:
        metric: Such as :func:`dice`.
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
    # Shapes that broadcast, or labels combined bit by bit (1 & 2 is 0), would give an answer, but a wrong one.
    if prediction.shape != reference.shape:
        raise ValueError(f"masks of shapes {prediction.shape} and {reference.shape} cannot be compared")
    if prediction.dtype != np.bool_ or reference.dtype != np.bool_:
        raise ValueError(f"masks must be boolean, not {prediction.dtype} and {reference.dtype}")
    predicted, referred = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    common = int(np.count_nonzero(prediction & reference)) if predicted and referred else 0
    return common, predicted, referred
