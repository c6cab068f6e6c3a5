"""Predicted gains as an order: which region is next, if the work may be cut off at any time."""

from __future__ import annotations

import numpy as np

from assignnet.choice.cost_model import CostModel
from assignnet.choice.tree import Roi, RoiTree
from assignnet.learn.observation import Observation, still_free
from assignnet.learn.supervised import GainNetwork, predict_gains
from assignnet.value.overlap import box_shares
from assignnet.value.voxel_counts import Counts, Metric


def order_by_gains(
    network: GainNetwork, tree: RoiTree, cost_model: CostModel, observation: Observation, metric: Metric
) -> tuple[Roi, ...]:
    """All families of a tree, as a parent or as its children, the next one always with the best predicted rate.

    The rate is the gain in quality over the cost. Of a region that others hold a part of, which were taken before, only
    the rest counts. Nothing is left out: what is not worth its time comes last.

    Args:
        network: In evaluation mode.
        tree: Has at least one region.
        cost_model: How regions are processed; neither lambda nor a budget counts.
        observation: The same tree as ``observe`` shows it.
        metric: Quality that is to rise early.
    """
    gains, rois = predict_gains(network, tree, observation), tree.rois
    cost = np.array([cost_model.slots(roi.box) for roi in rois])
    shares, taken = box_shares([roi.box for roi in rois]), np.zeros(len(rois), dtype=bool)
    common, found, order = 0.0, 0.0, list[int]()
    while (free := still_free(observation.parent, taken)).any():
        fresh = np.maximum(1.0 - shares @ taken, 0.0)
        more_common, more_found = gains.common * fresh, gains.found * fresh
        after = _quality(common + more_common, found + more_found, gains.true, metric)
        before = _quality(np.array(common), np.array(found), gains.true, metric)
        best = int(np.argmax(np.where(free, (after - before) / cost, -np.inf)))
        common, found = common + float(more_common[best]), found + float(more_found[best])
        taken[best] = True
        order.append(best)
    return tuple(rois[row] for row in order)


def _quality(common: Counts, found: Counts, true: float, metric: Metric) -> Counts:
    """Dice or IoU of counts."""
    above, below = (2 * common, found + true) if metric == "dice" else (common, found + true - common)
    quality: Counts = above / np.maximum(below, 1e-12)
    return quality
