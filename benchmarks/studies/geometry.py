"""Experiments that need no fine network: which regions a heatmap gives, and how they lie on canvases.

They run on a case with models, where the coarse network makes the heatmap. Where there is only a reference they take
that itself for the heatmap, averaged to its voxels: the regions of a coarse network that makes no mistake.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.ndimage import find_objects

from assignnet import RULES, Roi, RoiTree
from assignnet.choice.rules import greedy
from benchmarks.common.bench import Bench
from benchmarks.common.registry import Case, Dataset, MissingDataError, config_file
from benchmarks.selection.measures import RealCase, look
from canvas import Box, Canvas, Triple, share_filled, share_of_volume, triple
from coarse2fine.config.reader import load_config
from coarse2fine.config.schema import Config
from coarse2fine.evaluation.instances import label_objects, object_recall
from coarse2fine.evaluation.masks import leave_out
from coarse2fine.fine.canvases import plan_canvases
from coarse2fine.fine.sizes import CanvasPlan, plan_sizes
from coarse2fine.io import LabelledCase, read_volume
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import WorkingView
from coarse2fine.selection.selector import cost_model_of, find_tree

Rows = list[dict[str, Any]]
AXES = ("z", "y", "x")
NMM_THRESHOLDS = tuple(tenths / 10 for tenths in range(1, 10))
ROI_THRESHOLDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
PACKINGS = ("same_size", "same_scale")
OVERLAPPING = "rois.window_step=0.5"
"""Windows must overlap to merge into parents; the original system's step."""
MEGA = 1e6
FOUND = 0.5
"""Share of an object's voxels that must be covered for it to be found."""


class MaskBench:
    """One case of which there is only a reference, without models.

    Its working grid is the file's own. Sizes are those of the settings, which must name the canvas.

    Args:
        dataset: Where the settings are.
        case: Its reference is read when it is asked for.
        overrides: Settings that win over the data set's.
    """

    def __init__(self, dataset: Dataset, case: Case, overrides: Sequence[str] = ()) -> None:
        self.dataset, self.case, self._overrides = dataset, case, tuple(overrides)

    def config(self, *overrides: str) -> Config:
        """The data set's settings, with further ones on top."""
        return load_config(config_file(self.dataset), [*self._overrides, *overrides])

    @cached_property
    def reference(self) -> NDArray[Any]:
        """True labels, (z, y, x) of the file; background where nobody has decided."""
        labels = read_volume([self.case.reference]).channels[0]
        return leave_out(labels, labels, self._ignore)

    @property
    def _ignore(self) -> int | None:
        """The label of voxels on which nobody has decided, if the data set is one of nnU-Net's and has such a label."""
        path = self.case.reference.parents[1] / "dataset.json"
        value = json.loads(path.read_text())["labels"].get("ignore") if path.is_file() else None
        return value if isinstance(value, int) else None


AnyBench = Bench | MaskBench


@dataclass(frozen=True, slots=True, eq=False)
class Heat:
    """A heatmap.

    Attributes:
        values: Foreground probability, float32, shape (z, y, x).
        volume: Shape of the working grid that it covers.
    """

    values: NDArray[np.float32]
    volume: Triple

    def mirrored(self, axis: int) -> Heat:
        """Twice the volume: the same once more, mirrored."""
        values = np.concatenate([self.values, np.flip(self.values, axis)], axis=axis)
        return Heat(values, triple(edge * (1 + (index == axis)) for index, edge in enumerate(self.volume)))


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """What geometry needs of a case.

    Attributes:
        heat: The heatmap.
        truth: True labels over the same region of space; any shape (z, y, x).
        source: Where the heatmap comes from.
    """

    heat: Heat
    truth: NDArray[Any]
    source: str


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """The regions of a case under some settings.

    Attributes:
        config: These settings.
        plan: Sizes.
        tree: All regions.
        chosen: Those that the configured rule chooses, in its order; greedy, if an agent is configured.
    """

    config: Config
    plan: CanvasPlan
    tree: RoiTree
    chosen: tuple[Roi, ...]

    def canvases(self, rois: Sequence[Roi] | None = None) -> list[Canvas]:
        """Regions packed, the chosen ones unless others are given."""
        boxes = [roi.box for roi in (self.chosen if rois is None else rois)]
        return plan_canvases(boxes, self.config, self.plan, self.tree.volume)


def real_case(bench: Bench, *overrides: str) -> RealCase:
    """The case as ``assign_order`` takes it."""
    labelled = LabelledCase(bench.case.name, bench.files, bench.case.reference)
    return RealCase(bench.dataset.name, labelled, bench.pipeline(*overrides), bench.model("coarse"))


def ground_of(bench: AnyBench) -> Ground:
    """Heatmap and reference of a case.

    Raises:
        MissingDataError: If the reference is empty.
    """
    if isinstance(bench, MaskBench):
        truth, voxel = bench.reference, bench.config().rois.heatmap_voxel or (1, 1, 1)
        ground = Ground(Heat(block_average(truth != 0, voxel), triple(truth.shape)), truth, "reference")
    else:
        seen = look(real_case(bench))
        truth = leave_out(seen.truth, seen.truth, bench.model("fine").labels.ignore)
        ground = Ground(Heat(seen.scene.coarse.heatmap, seen.scene.view.shape), truth, "coarse network")
    if not ground.truth.any():
        raise MissingDataError(f"{bench.case.reference.name} has no foreground", "Choose another --cases.")
    return ground


def find_regions(bench: AnyBench, heat: Heat, *overrides: str) -> Regions:
    """Heatmap -> tree -> choice, with further settings on top of the case's.

    Raises:
        MissingDataError: If there is no model, and the settings do not name the canvas either.
    """
    if isinstance(bench, MaskBench):  # its heatmap has these voxels already
        config = bench.config("rois.heatmap_voxel=null", *overrides)
        if config.canvas.size is None:
            raise MissingDataError(
                f"'{bench.dataset.name}' has no model and its settings no canvas.size", "Name one by --set canvas.size."
            )
        size = config.canvas.size  # all that sizes depend on, of a network that has yet to be trained
        model = cast(Model, SimpleNamespace(patch=size, divisor=usual_divisor(size), folder="none"))
    else:
        config, model = bench.config(*overrides), bench.model("fine")
    plan = plan_sizes(config, model)
    # Of a view only the shape is asked for.
    tree = find_tree(config, plan, heat.values, cast(WorkingView, SimpleNamespace(shape=heat.volume)))
    choose = RULES.get(config.assign.agent, greedy)
    return Regions(config, plan, tree, choose(tree, cost_model_of(config, plan)))


def packed(bench: AnyBench, packing: str) -> tuple[str, ...]:
    """Settings of a packing, with a rule as in ``by_rule``.

    Windows that were chosen for the other packing are left out: a packing's own are as large as it shows natively.
    """
    other = bench.config().canvas.packing != packing
    return (f"canvas.packing={packing}", *by_rule(bench), *(["rois.window=null"] if other else []))


def by_rule(bench: AnyBench) -> tuple[str, ...]:
    """A setting that puts a rule in the place of a trained agent, which fits one packing only."""
    return () if bench.config().assign.agent in RULES else ("assign.agent=greedy",)


def usual_divisor(patch: Triple) -> Triple:
    """How often nnU-Net's planner would halve a patch: each axis as long as four voxels are left, at most five times.

    >>> usual_divisor((56, 192, 20))
    (8, 32, 4)
    """
    return triple(
        max(by for by in (1, 2, 4, 8, 16, 32) if (edge % by == 0 and edge >= 4 * by) or by == 1) for edge in patch
    )


def block_average(mask: NDArray[np.bool_], voxel: Triple) -> NDArray[np.float32]:
    """Share of true voxels in blocks of at most a voxel's size, equal but for rounding; shape ceil(mask / voxel).

    Block i of n along an axis of length N begins at i * N // n, where ``coarse2fine.regions.detect`` has it, too.

    >>> block_average(np.array([[[True, True, True, False, False]]]), (1, 1, 2)).tolist()
    [[[1.0, 1.0, 0.0]]]
    """
    values = mask.astype(np.float32)
    for axis, (edge, size) in enumerate(zip(mask.shape, voxel, strict=True)):
        count = -(-edge // size)
        starts = np.arange(count) * edge // count
        shape = [-1 if other == axis else 1 for other in range(3)]
        widths = np.diff(starts, append=edge).reshape(shape)
        values = (np.add.reduceat(values, starts, axis=axis) / widths).astype(np.float32)
    return values


def objects_of(truth: NDArray[Any]) -> NDArray[np.int64]:
    """Instance map: every component (26 neighbours) of every label is an object; shape as the labels."""
    ids, count = np.zeros(truth.shape, np.int64), 0
    for label, slices in enumerate(find_objects(truth.astype(np.int64, copy=False)), 1):
        if slices is not None:
            own = label_objects(truth[slices] == label).astype(np.int64)
            ids[slices] += np.where(own, own + count, 0)
            count += int(own.max())
    return ids


def painted(boxes: Sequence[Box], volume: Triple, shape: Triple) -> NDArray[np.bool_]:
    """Which voxels of a grid of another shape over the same region of space have their centres in a box."""
    inside = np.zeros(shape, bool)
    for box in boxes:
        edges = zip(box.start, box.stop, volume, shape, strict=True)
        # Voxel i of n is inside if start <= (i + 1/2) * edge / n < stop; in integers.
        inside[tuple(slice(*(-(-(2 * end * n - edge) // (2 * edge)) for end in (a, b))) for a, b, edge, n in edges)] = 1
    return inside


def nearest(mask: NDArray[np.bool_], shape: Triple) -> NDArray[np.bool_]:
    """A mask on a grid of another shape over the same region of space: each voxel takes what lies at its centre."""
    index = [(2 * np.arange(n) + 1) * size // (2 * n) for size, n in zip(mask.shape, shape, strict=True)]
    return mask[np.ix_(*index)]


def resize_ratio(bench: AnyBench, console: Console) -> Rows:
    """How large merged regions are, and by how much they are resized to their slots, per NMM threshold.

    Every parent is packed at same size. A ratio is voxels of the volume per voxel of the canvas.
    """
    ground = ground_of(bench)
    rows = []
    for threshold in NMM_THRESHOLDS:
        for postprocess in ("resize_only", "crop_and_resize"):
            settings = (f"rois.nmm_threshold={threshold}", f"fine.postprocess={postprocess}")
            found = find_regions(bench, ground.heat, OVERLAPPING, *packed(bench, "same_size"), *settings)
            canvases = found.canvases(found.tree.parents)
            scales = [placement.scale for canvas in canvases for placement in canvas.placements]
            rows.append(
                {
                    "nmm_threshold": threshold,
                    "postprocess": postprocess,
                    "heatmap": ground.source,
                    "parents": len(found.tree.parents),
                    "children": len(found.tree.leaves),
                    "canvases": len(canvases),
                    "mvoxels": mvoxels(canvases),
                    "resized_share": share(max(scale) > 1 for scale in scales),
                }
                | means("parent_edge_{}_voxels", [roi.box.shape for roi in found.tree.parents])
                | means("child_edge_{}_voxels", [roi.box.shape for roi in found.tree.leaves])
                | means("ratio_{}", scales)
            )
    return rows


def pack_geometry(bench: AnyBench, console: Console) -> Rows:
    """How full canvases get with either packing, also in four times the volume, mirrored along y and x."""
    ground = ground_of(bench)
    rows = []
    for times, one in ((1, ground.heat), (4, ground.heat.mirrored(1).mirrored(2))):
        for packing in PACKINGS:
            found = find_regions(bench, one, *packed(bench, packing))
            canvases = found.canvases()
            rows.append(
                {
                    "kind": "geometry",
                    "volume_times": times,
                    "packing": packing,
                    "heatmap": ground.source,
                    "boxes": len(found.chosen),
                    "canvases": len(canvases),
                    "mvoxels": mvoxels(canvases),
                    "fill": share_filled(canvases),
                    "wanted": share_wanted(canvases),
                }
            )
    return rows


def share_wanted(canvases: Sequence[Canvas]) -> float:
    """Share of canvases that shows boxes, without their surroundings; same-size slots count these as filled, too."""
    placements = [placement for canvas in canvases for placement in canvas.placements]
    shown = sum(place.slot.volume * place.box.volume / place.source.volume for place in placements)
    return shown / mvoxels(canvases) / MEGA if canvases else 0.0


def mvoxels(canvases: Sequence[Canvas]) -> float:
    """Million voxels of all canvases: what the network gets, for they may differ in size."""
    return sum(prod(canvas.shape) for canvas in canvases) / MEGA


def roi_threshold(bench: AnyBench, console: Console) -> Rows:
    """What is left of the reference above each heatmap threshold and in the boxes there, and what they cost."""
    ground = ground_of(bench)
    heat, truth = ground.heat, ground.truth
    true, shape = truth != 0, triple(truth.shape)
    ids = objects_of(truth)[true]
    rows = []
    for threshold in ROI_THRESHOLDS:
        found = find_regions(bench, heat, f"rois.threshold={threshold}")
        boxes, canvases = [roi.box for roi in found.chosen], found.canvases()
        in_boxes = painted(boxes, heat.volume, shape)[true]
        above = nearest(heat.values > threshold, shape)[true]
        rows.append(
            {
                "threshold": threshold,
                "heatmap": ground.source,
                "objects": len(np.unique(ids)),
                "voxels_above": float(above.mean()),
                "objects_above": object_recall(above, ids, FOUND),
                "voxels_in_boxes": float(in_boxes.mean()),
                "objects_in_boxes": object_recall(in_boxes, ids, FOUND),
                "children": len(found.tree.leaves),
                "parents": len(found.tree.parents),
                "boxes": len(boxes),
                "canvases": len(canvases),
                "mvoxels": mvoxels(canvases),
                "volume_share": share_of_volume(boxes, heat.volume),
            }
        )
    return rows


def means(name: str, values: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Mean of each axis under a name with a gap for the axis; None where there is nothing to average."""
    averages = np.mean(values, axis=0).tolist() if values else [None] * 3
    return {name.format(axis): value for axis, value in zip(AXES, averages, strict=True)}


def share(answers: Any) -> float:
    """Share of true answers; 0 of none."""
    listed = list(answers)
    return sum(listed) / len(listed) if listed else 0.0
