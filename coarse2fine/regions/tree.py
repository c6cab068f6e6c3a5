"""Regions -> the tree of large and small ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from assignnet.choice.tree import Roi, RoiTree
from canvas.box import Box, Triple, to_array, triple
from coarse2fine.regions.nms import Merging, Overlap, merge, suppress
from coarse2fine.regions.search_grid import Heatmap, Place, box_mass


def build_tree(
    rois: Sequence[Roi],
    heatmap: Heatmap,
    volume: Triple,
    *,
    threshold: float,
    nms_threshold: float,
    nmm_threshold: float,
    nms_overlap: Overlap = "iou",
    nmm_overlap: Overlap = "ios",
    nmm_merging: Merging = "greedy",
    place: Place | None = None,
) -> RoiTree:
    """Children: the candidates that survive NMS. Parents: the hulls of the groups that NMM makes of the children.

    A parent's score is the best of its children, its mass is measured anew inside the hull, because children may
    overlap and the hull may hold more than they do. If one child fills the hull of its group, that child is the
    parent and the others, which lie inside it, are left out. Groups that would put the same box into the tree twice
    become one.

    Args:
        rois: Candidates from ``find_rois``.
        heatmap: The heatmap in which they were found.
        volume: As there.
        threshold: The heatmap threshold with which they were found (not an overlap).
        nms_threshold: Overlap from which on the worse of two candidates is dropped.
        nmm_threshold: Overlap from which on two children belong to one parent.
        nms_overlap: Overlap that NMS compares; see ``coarse2fine.regions.nms``.
        nmm_overlap: Overlap that NMM compares.
        nmm_merging: How NMM groups.
        place: Where the heatmap lies, if it is a part of one.

    Returns:
        The tree; parents in falling order of score, children of a parent too.
    """
    scores = np.array([roi.score for roi in rois])
    children = [rois[i] for i in suppress(to_array(roi.box for roi in rois), scores, nms_threshold, nms_overlap)]
    scores = np.array([roi.score for roi in children])
    merged = merge(to_array(roi.box for roi in children), scores, nmm_threshold, nmm_overlap, nmm_merging)
    groups = _without_repeats([[children[i] for i in group] for group in merged])
    parents, families = [], []
    for group in groups:
        hull, score = _hull(group), max(roi.score for roi in group)
        filling = [roi for roi in group if roi.box == hull]
        mass = filling[0].mass if filling else box_mass(heatmap, volume, hull, threshold, place)
        parent = Roi(hull, score, mass)
        parents.append(parent)
        families.append((parent,) if filling else tuple(group))
    return RoiTree(tuple(parents), tuple(families), volume)


def _hull(rois: Sequence[Roi]) -> Box:
    corners = to_array(roi.box for roi in rois)
    return Box(triple(corners[:, :3].min(axis=0)), triple(corners[:, 3:].max(axis=0)))


def _without_repeats(groups: list[list[Roi]]) -> list[list[Roi]]:
    """Join groups until no box, hull or member, belongs to two of them, and no group holds a box twice."""
    while True:
        joined: list[list[Roi]] = []
        position: dict[Box, int] = {}
        for group in groups:
            nodes = [_hull(group), *(roi.box for roi in group)]
            target = min((position[box] for box in nodes if box in position), default=len(joined))
            if target == len(joined):
                joined.append([])
            members = {roi.box: roi for roi in reversed([*joined[target], *group])}
            joined[target] = sorted(members.values(), key=lambda roi: (-roi.score, roi.box))
            position.update(dict.fromkeys(nodes, target))
        if len(joined) == len(groups):
            return joined
        groups = joined
