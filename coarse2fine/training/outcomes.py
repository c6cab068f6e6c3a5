"""Training instances from labelled cases: what the fine network really yields in every region of a tree.

Every region is segmented by the fine stage itself, as a crop of its own, and its labels are counted against the true
ones on the volume's own grid. Boxes do not grow meanwhile: what a region yields is what its box yields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from assignnet import CostModel, Features, Roi, RoiTree
from assignnet.value.instance import Instance
from assignnet.value.voxel_counts import count_outcomes
from canvas import Box, triple
from coarse2fine.coarse.heatmap import CoarseStage, paint_coarse, predict_heatmap
from coarse2fine.coarse.scene import Scene
from coarse2fine.config.schema import Config
from coarse2fine.errors import VolumeError
from coarse2fine.fine.canvases import better_alone
from coarse2fine.fine.inputs import VolumeNorm
from coarse2fine.fine.segment import FineStage, segment_boxes
from coarse2fine.fine.writeback import LabelWriter
from coarse2fine.io import Volume
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import WorkingView, view_volume
from coarse2fine.selection.features import FeatureSettings, tree_features
from coarse2fine.selection.selector import cost_model_of, find_tree
from coarse2fine.system.timing import Run, Stage

Labels = NDArray[np.unsignedinteger]


@dataclass(frozen=True, slots=True)
class OutcomeSettings:
    """How many instances come of a case.

    Attributes:
        variants: Trees: one with the configured thresholds, the others with perturbed ones.
        regions: Random sub-volumes of each tree, beside the whole.
        most: A tree with more regions is left out.
    """

    variants: int = 8
    regions: int = 12
    most: int = 300


@dataclass(frozen=True, slots=True, eq=False)
class LabelledTree:
    """One tree of a case with everything that is known about it, on the whole volume.

    Attributes:
        tree: The regions.
        cost_model: How they are processed.
        features: What the feature model sees.
        truth: True labels of the turned, cropped volume.
        outside: Labels outside of all regions, same shape.
        places: Where in these each region lies.
        labels: What each region yields there.
        classes: Labels that count.
        seconds_per_slot: Measured.
    """

    tree: RoiTree
    cost_model: CostModel
    features: Features
    truth: Labels
    outside: Labels
    places: tuple[Box, ...]
    labels: tuple[Labels, ...]
    classes: tuple[int, ...]
    seconds_per_slot: float


def measure_outcomes(
    volume: Volume,
    reference: Labels,
    coarse: Model,
    fine: Model,
    config: Config,
    features: FeatureSettings,
    settings: OutcomeSettings,
    *,
    parts: Sequence[tuple[str, tuple[float, float]]] = (("whole", (0.0, 1.0)),),
    seed: int = 0,
) -> Iterator[Instance]:
    """Instances of one labelled case.

    Args:
        volume: The image.
        reference: True labels, shape (z, y, x) of the volume.
        coarse: The coarse model.
        fine: The fine model.
        config: Settings; growing is turned off.
        features: What is computed of every region.
        settings: How many instances.
        parts: Names and extents of parts of the volume, as shares of its longest axis, that must not share an
            instance, such as a part for validation.
        seed: Fixes perturbations and sub-volumes.

    Raises:
        VolumeError: If the labels do not fit the image.
    """
    if reference.shape != volume.grid.shape:
        raise VolumeError(
            f"{volume.name}: labels of shape {reference.shape} for an image of {volume.grid.shape}",
            "Resample the labels to the image's grid, or give those that were drawn on it.",
        )
    random = np.random.default_rng(seed)
    coarse_view = view_volume(volume, coarse, config.coarse.spacing)
    looked = predict_heatmap(CoarseStage(coarse, fine, config.coarse, features.wants_coarse), coarse_view)
    view = view_volume(volume, fine)
    truth = np.ascontiguousarray(np.asarray(view.turn.array(reference))[view.crop.slices])
    axis = int(np.argmax(view.shape))
    for variant, changed in enumerate(perturbed(config, settings.variants, random)):
        labelled = label_tree(FineStage.of(fine, changed), Scene(view, looked), truth, features, settings.most)
        if labelled is None:
            continue
        for name, (low, high) in parts:
            start, stop = [0, 0, 0], list(view.shape)
            start[axis], stop[axis] = round(low * view.shape[axis]), round(high * view.shape[axis])
            part = Box(triple(start), triple(stop))
            for index, region in enumerate([part, *random_boxes(part, settings.regions, random)]):
                case = f"{volume.name}/{name}"
                instance = restrict(labelled, part, region, view, fine, f"{case}/{variant}/{index}", case)
                # Where there is nothing to find, quality is all or nothing, and says little about regions.
                if instance.tree.parents and instance.outcomes.truth.any():
                    yield instance


def perturbed(config: Config, count: int, random: np.random.Generator) -> Iterator[Config]:
    """The settings, and copies with other thresholds, overlaps and window steps, ``count`` in total."""
    fixed = config.model_copy(
        update={"fine": config.fine.model_copy(update={"grow": 0}), "mode": "accelerated"},
    )
    rois = config.rois
    for index in range(count):
        if index == 0:
            yield fixed
            continue
        changes = {
            "threshold": float(np.clip(rois.threshold * np.exp(random.uniform(np.log(0.2), np.log(3))), 1e-4, 0.9)),
            "nms_threshold": float(np.clip(rois.nms_threshold + random.uniform(-0.2, 0.2), 0.3, 1.0)),
            "nmm_threshold": float(np.clip(rois.nmm_threshold * random.uniform(0.3, 1.5), 0.05, 1.0)),
            "window_step": float(random.choice([0.5, 0.75, 1.0])),
        }
        yield fixed.model_copy(update={"rois": rois.model_copy(update=changes)})


def label_tree(
    stage: FineStage, scene: Scene, truth: Labels, features: FeatureSettings, most: int
) -> LabelledTree | None:
    """Find the tree and segment every region of it; None if it has no regions, or more than ``most``."""
    fine, config, plan = stage.model, stage.config, stage.plan
    view, coarse = scene.view, scene.coarse
    tree = find_tree(config, plan, coarse.heatmap, view)
    if not 0 < len(tree.rois) <= most:
        return None
    cost_model = cost_model_of(config, plan)
    outside = np.zeros(truth.shape, fine.labels.dtype)
    if config.fine.outside == "coarse":
        paint_coarse(coarse, outside)
    # What the reference does not decide on is background on both sides: neither right nor wrong.
    ignored = np.zeros(truth.shape, bool) if fine.labels.ignore is None else truth == fine.labels.ignore
    truth = np.where(ignored, 0, truth).astype(truth.dtype)
    outside[ignored] = 0
    run, labels = Run(), dict[Box, Labels]()
    places: dict[Box, Box] = {}
    known = [roi.box for roi in tree.leaves]
    norm = VolumeNorm(alone=better_alone(known, config, plan, view.shape))
    for group in disjoint_groups(tree.rois):
        writer, boxes = LabelWriter(view, fine), [roi.box for roi in group]
        segment_boxes(stage, scene, boxes, writer, run, known=known, norm=norm)
        writer.finish()
        found = writer.labels
        found[ignored] = 0
        places |= {box: writer.native(box) for box in boxes}
        labels |= {box: found[places[box].slices].copy() for box in boxes}
    slots = sum(cost_model.slots(roi.box) for roi in tree.rois)
    return LabelledTree(
        tree,
        cost_model,
        tree_features(features, tree, scene, fine, plan.slot),
        truth,
        outside,
        tuple(places[roi.box] for roi in tree.rois),
        tuple(labels[roi.box] for roi in tree.rois),
        tuple(fine.labels.foreground),
        run.clock.seconds[Stage.FINE.passes] / slots,
    )


def disjoint_groups(rois: Iterable[Roi]) -> list[list[Roi]]:
    """Regions in as few groups as a greedy pass finds, such that none in a group overlap."""
    groups: list[list[Roi]] = []
    for roi in rois:
        for group in groups:
            if not any(roi.box.intersection(other.box) for other in group):
                group.append(roi)
                break
        else:
            groups.append([roi])
    return groups


def random_boxes(part: Box, count: int, random: np.random.Generator) -> Iterator[Box]:
    """Boxes inside of another, with edges from half of its to all of it."""
    for _ in range(count):
        shape = np.ceil(np.array(part.shape) * random.uniform(0.5, 1.0, 3)).astype(int)
        start = part.start + random.integers(0, np.array(part.shape) - shape + 1)
        yield Box.of(triple(start), triple(shape))


def restrict(
    labelled: LabelledTree, part: Box, region: Box, view: WorkingView, fine: Model, name: str, case: str
) -> Instance:
    """The instance of a sub-volume: the families in its midst, and the voxels that no other region holds.

    Args:
        labelled: Of the whole volume.
        part: Part of the volume that the instance must not leave.
        region: The sub-volume, on the working grid. Families whose parent's centre it holds belong to it; it grows to
            hold them.
        view: The working grid.
        fine: The fine model.
        name: Of the instance.
        case: That it belongs to.
    """
    tree = labelled.tree
    kept = [
        index
        for index, parent in enumerate(tree.parents)
        if part.contains(parent.box) and region.contains(parent.box.centred((1, 1, 1), part))
    ]
    for index in kept:
        region = region.hull(tree.parents[index].box)
    held = LabelWriter(view, fine).native(region)
    inside = {roi for index in kept for roi in (tree.parents[index], *tree.children[index])}
    rows = [row for row, roi in enumerate(tree.rois) if roi in inside]
    places = {row: labelled.places[row].relative_to(held).slices for row in rows}
    counts = np.ones(held.shape, bool)
    for place in (place.clip(held) for row, place in enumerate(labelled.places) if row not in rows):
        counts[place.relative_to(held).slices] = False
    for row in rows:
        counts[places[row]] = True

    def moved(roi: Roi) -> Roi:
        return Roi(roi.box.shift(-edge for edge in region.start), roi.score, roi.mass)

    small = RoiTree(
        tuple(moved(tree.parents[index]) for index in kept),
        tuple(tuple(map(moved, tree.children[index])) for index in kept),
        region.shape,
    )
    nodes = labelled.features.nodes
    outcomes = count_outcomes(
        labelled.truth[held.slices] * counts,
        labelled.outside[held.slices] * counts,
        [(places[row], labelled.labels[row]) for row in rows],
        labelled.classes,
    )
    features = Features(nodes[rows] if nodes.shape[1] else nodes, labelled.features.volume)
    return Instance(name, case, small, labelled.cost_model, features, outcomes, labelled.seconds_per_slot)
