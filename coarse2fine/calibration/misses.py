"""How much foreground lies outside of the boxes of a case, at every threshold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from canvas import Box, Triple, share_of_volume, triple
from coarse2fine.coarse.scene import Scene
from coarse2fine.errors import VolumeError
from coarse2fine.fine.segment import FineStage
from coarse2fine.fine.writeback import LabelWriter
from coarse2fine.io import Volume
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.promise.likeness import Likeness, likeness_of
from coarse2fine.regions.components import label_components
from coarse2fine.segmenter import Segmenter
from coarse2fine.system.timing import Run

THRESHOLDS = tuple(float(f"{value:.3g}") for value in np.geomspace(0.001, 0.9, 40))
"""Candidates, in rising order; a factor of 1.2 apart."""

Labels = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True)
class Miss:
    """What a threshold misses of a case.

    Attributes:
        threshold: Of the heatmap.
        missed: Share of the foreground outside of all boxes.
        boxes: Share of the working grid inside of them.
    """

    threshold: float
    missed: float
    boxes: float


@dataclass(frozen=True, slots=True)
class MissedObject:
    """The object of which the lowest threshold misses most.

    Attributes:
        voxels: Of it.
        missed: Of these outside of all boxes.
        at: The middle of its voxels, (z, y, x) of the volume.
    """

    voxels: int
    missed: int
    at: Triple


@dataclass(frozen=True, slots=True)
class MeasuredCase:
    """One calibration case.

    Attributes:
        name: Of the case.
        foreground: Its true foreground, voxels.
        misses: By rising threshold.
        likeness: What the case is like.
        hardest: The object that is missed most at the lowest threshold; None if nothing is.
    """

    name: str
    foreground: int
    misses: tuple[Miss, ...]
    likeness: Likeness
    hardest: MissedObject | None = None

    def limit(self, most: float) -> float:
        """The highest threshold up to which no threshold misses more than a share; -inf if the lowest one does.

        Higher thresholds do not count, whatever they miss, so that what is promised holds for lower ones, too.
        """
        kept = -inf
        for miss in self.misses:
            if miss.missed > most:
                break
            kept = miss.threshold
        return kept

    def at(self, threshold: float) -> Miss | None:
        """What a threshold misses, if that was measured."""
        return next((miss for miss in self.misses if miss.threshold == threshold), None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        misses = tuple(Miss(**miss) for miss in values["misses"])
        found = values["hardest"]
        hardest = MissedObject(found["voxels"], found["missed"], triple(found["at"])) if found else None
        return cls(values["name"], values["foreground"], misses, Likeness.from_dict(values["likeness"]), hardest)


def measure_case(
    segmenter: Segmenter,
    volume: Volume[NDArray[Any]],
    foreground: NDArray[np.bool_],
    thresholds: Sequence[float] = THRESHOLDS,
) -> MeasuredCase:
    """What each threshold misses of a case: the coarse network runs once, the fine one never.

    Boxes are those that a run would segment at first: found, cut into windows, with margins, suppressed, merged and
    chosen. A run may add to them where a mask reaches out of its box, never take away.

    Args:
        segmenter: Models and settings.
        volume: The case, in memory.
        foreground: True foreground, shape (z, y, x) of the volume.
        thresholds: Candidates in rising order.

    Raises:
        VolumeError: If there is no foreground, or it has another shape.
    """
    looked = segmenter.heatmap(view_volume(volume, segmenter.coarse, segmenter.config.coarse.spacing), Run())
    return measure_scene(
        segmenter, volume, Scene(view_volume(volume, segmenter.stage.model), looked), foreground, thresholds
    )


def measure_scene(
    segmenter: Segmenter,
    volume: Volume[NDArray[Any]],
    scene: Scene,
    foreground: NDArray[np.bool_],
    thresholds: Sequence[float] = THRESHOLDS,
) -> MeasuredCase:
    """As ``measure_case``, of a case that the coarse network has looked at.

    Args:
        segmenter: As there.
        volume: Likewise.
        scene: Of the volume.
        foreground: As there.
        thresholds: Likewise.
    """
    if foreground.shape != volume.grid.shape:
        raise VolumeError(
            f"{volume.name}: labels of shape {foreground.shape} for an image of {volume.grid.shape}",
            "Resample the labels to the image's grid, or give those that were drawn on it.",
        )
    total = int(np.count_nonzero(foreground))
    if not total:
        raise VolumeError(f"{volume.name} has no foreground, of which nothing can be missed", "Leave the case out.")
    cropped = np.asarray(scene.view.turn.array(foreground))[scene.view.crop.slices]
    held = _hull(cropped)  # elsewhere boxes hold nothing
    cropped = cropped[held.slices]
    writer = LabelWriter(scene.view, segmenter.stage.model)
    run, misses, hardest = Run(), list[Miss](), None
    for threshold in thresholds:
        boxes = _boxes(segmenter, scene, threshold, run)
        inside = np.zeros(cropped.shape, bool)
        for box in boxes:
            part = writer.native(box).clip(held)
            if part.volume:
                inside[part.relative_to(held).slices] = True
        found = int(np.count_nonzero(cropped & inside))
        misses.append(Miss(threshold, 1 - found / total, float(share_of_volume(boxes, scene.view.shape))))
        if len(misses) == 1 and found < total:
            outside = foreground.copy()
            np.asarray(scene.view.turn.array(outside))[scene.view.crop.slices][held.slices][inside] = False
            hardest = _most_missed(foreground, outside)
    return MeasuredCase(volume.name, total, tuple(misses), likeness_of(volume, scene), hardest)


def _most_missed(foreground: NDArray[np.bool_], outside: NDArray[np.bool_]) -> MissedObject:
    """Of the objects that have a part outside of all boxes, the one with the largest."""
    objects = label_components(foreground)[tuple(map(slice, foreground.shape))]
    missed = np.bincount(objects[outside])
    own = np.argwhere(objects == missed.argmax())
    return MissedObject(len(own), int(missed.max()), triple(own.mean(axis=0).round().astype(int)))


def jointly(cases: Sequence[MeasuredCase]) -> MeasuredCase:
    """One case, measured with several settings: what it misses with the worst of them at each threshold.

    A threshold that is calibrated on such cases holds for each of the settings, so that one of them may be chosen by
    looking at the very same cases.

    Args:
        cases: The same case; boxes are those of the first settings.
    """
    hardest = max(cases, key=lambda case: case.misses[0].missed).hardest
    rows = zip(*(case.misses for case in cases), strict=True)
    return dataclasses.replace(
        cases[0],
        misses=tuple(dataclasses.replace(row[0], missed=max(miss.missed for miss in row)) for row in rows),
        hardest=hardest,
    )


def _hull(mask: NDArray[np.bool_]) -> Box:
    """The box of what is true; empty if nothing is."""
    sides = [np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    if not all(side.size for side in sides):
        return Box((0, 0, 0), (0, 0, 0))
    return Box(triple(side[0] for side in sides), triple(side[-1] + 1 for side in sides))


def _boxes(segmenter: Segmenter, scene: Scene, threshold: float, run: Run) -> list[Box]:
    """The boxes that a run with another threshold would segment."""
    rois = segmenter.config.rois.model_copy(update={"threshold": threshold})
    config = segmenter.config.model_copy(update={"rois": rois})
    stage = FineStage.of(segmenter.stage.model, config)
    changed = dataclasses.replace(segmenter, config=config, stage=stage)
    tree = changed.regions(scene, run)
    if not tree.parents and config.rois.empty == "one-stage":
        return [Box.whole(scene.view.shape)]
    return [roi.box for roi in changed.choose(tree, scene, run).rois]


def limits_of(cases: Sequence[MeasuredCase], most: float) -> NDArray[np.float64]:
    """Of each case, in their order."""
    return np.array([case.limit(most) for case in cases])


def beyond(cases: Sequence[MeasuredCase], most: float) -> list[MeasuredCase]:
    """Cases of which even the lowest threshold misses too much: there the coarse model is the limit."""
    return [case for case in cases if case.limit(most) == -inf]
