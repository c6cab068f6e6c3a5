"""Without a coarse model: the fine one at a coarser spacing looks over the whole volume.

How coarse it may be is measured, on cases that are not calibrated on: a spacing that was chosen by looking at the
calibration cases would void the promise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import inf, prod
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from canvas import Box, Triple, triple
from coarse2fine.calibration.calibrate import FEWEST
from coarse2fine.calibration.cases import CalibrationCase
from coarse2fine.calibration.measure import measure
from coarse2fine.calibration.misses import MeasuredCase
from coarse2fine.calibration.settle import with_margin
from coarse2fine.coarse.heatmap import body_box
from coarse2fine.config.schema import BodyCrop, Config
from coarse2fine.fine.canvases import count_tiles
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.system.timing import Ticks

FACTORS = (2, 3, 4)
"""How many times coarser than the finest axis; a network that was trained on one voxel size sees little beyond that."""
MOST_TUNING = 3
"""Cases that the spacing is chosen on; each of them is lost to the promise."""
_CT = "CTNormalization"


@dataclass(frozen=True, slots=True)
class Look:
    """The fine model as the coarse one, in one way.

    Attributes:
        factor: Axes finer than so many times the finest one are as coarse as that.
        spacing: Voxel size, axes of the working grid.
        limit: Highest threshold at which all of the cases that were looked at keep the promise; -inf if none.
        cost: Network voxels of the coarse pass and of what the boxes hold, over those of one-stage mode.
    """

    factor: int
    spacing: tuple[float, float, float]
    limit: float
    cost: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which knows no infinity."""
        return asdict(self) | {"limit": None if self.limit == -inf else self.limit}


@dataclass(frozen=True, slots=True)
class FromFine:
    """How the fine model looks over whole volumes.

    Attributes:
        config: The settings given, with ``coarse.spacing`` and, for CT, ``coarse.body_crop``.
        tuning: Names of the cases that the spacing was chosen on; they must not be calibrated on.
        looks: What was measured; empty if there are too few cases to choose by.
    """

    config: Config
    tuning: tuple[str, ...]
    looks: tuple[Look, ...]


def coarse_from_fine(
    config: Config,
    fine: Model,
    cases: Sequence[CalibrationCase],
    work: Path,
    miss: float,
    *,
    needed: int = FEWEST,
    ticks: Ticks = lambda done, total: None,
) -> FromFine:
    """Settings with which the fine model is the coarse one, too.

    Where cases are too few to spare any, the spacing is twice the finest.

    Args:
        config: Settings to start from; what they say of the coarse stage is kept.
        fine: The fine model.
        cases: All cases.
        work: Folder of what is known already.
        miss: Most share of the foreground outside of boxes.
        needed: Cases that must be left to calibrate on.
        ticks: Told of looks at cases.
    """
    options = list(_options(config, fine))
    tuning = _spread(cases, min(MOST_TUNING, len(cases) - needed))
    if len(options) == 1 or not tuning:
        return FromFine(with_margin(options[0][1], fine, fine), (), ())
    options = [(factor, _fitted(settings, fine, tuning)) for factor, settings in options]
    looks, total = list[Look](), len(options) * len(tuning)
    for factor, settings in options:
        folder = work / f"spacing-{factor}"
        folder.mkdir(exist_ok=True)
        measured = list[tuple[CalibrationCase, MeasuredCase]]()
        for case in tuning:
            found = measure(case, settings, fine, fine, folder)
            measured += [(case, found)] if found else []
            ticks(len(looks) * len(tuning) + len(measured), total)
        looks.append(_look(factor, settings, fine, measured, miss))
    best = min(range(len(looks)), key=lambda index: (looks[index].limit == -inf, looks[index].cost))
    return FromFine(options[best][1], tuple(case.name for case in tuning), tuple(looks))


def _options(config: Config, fine: Model) -> Iterator[tuple[int, Config]]:
    """The finest first."""
    changes: dict[str, Any] = {}
    if "body_crop" not in config.coarse.model_fields_set and all(scheme.name == _CT for scheme in fine.schemes):
        changes["body_crop"] = BodyCrop()
    seen = set[tuple[float, ...]]()
    for factor in FACTORS:
        spacing = config.coarse.spacing or tuple(max(step, factor * min(fine.spacing)) for step in fine.spacing)
        if spacing not in seen:
            seen.add(spacing)
            coarse = config.coarse.model_copy(update={**changes, "spacing": spacing})
            yield factor, config.model_copy(update={"coarse": coarse})


def _spread(cases: Sequence[CalibrationCase], count: int) -> list[CalibrationCase]:
    """Some cases, spread evenly over the order in which they come, which says nothing about them."""
    if count < 1:
        return []
    return [cases[int(index)] for index in np.linspace(0, len(cases) - 1, count + 2)[1:-1].round()]


def _fitted(config: Config, fine: Model, cases: Sequence[CalibrationCase]) -> Config:
    """With a tile no larger than coarse volumes are, and a margin of a coarse voxel."""
    config = with_margin(config, fine, fine)
    if "patch_size" in config.coarse.model_fields_set:
        return config
    shapes = [view_volume(case.read(fine), fine, config.coarse.spacing).shape for case in cases]
    edges = zip(np.max(shapes, axis=0), fine.divisor, fine.patch, strict=True)
    # A network needs more than one voxel where it is deepest.
    patch = triple(min(limit, max(2 * by, -(-int(edge) // by) * by)) for edge, by, limit in edges)
    return config.model_copy(update={"coarse": config.coarse.model_copy(update={"patch_size": patch})})


def _look(
    factor: int, config: Config, fine: Model, measured: Sequence[tuple[CalibrationCase, MeasuredCase]], miss: float
) -> Look:
    spacing = config.coarse.spacing or fine.spacing
    limit = min((found.limit(miss) for _, found in measured), default=-inf)
    if limit == -inf:
        return Look(factor, spacing, limit, inf)
    return Look(factor, spacing, limit, mean(_cost(case, found, config, fine, limit) for case, found in measured))


def _cost(case: CalibrationCase, found: MeasuredCase, config: Config, fine: Model, threshold: float) -> float:
    """Of one case: network voxels, as a share of those of one-stage mode."""
    volume, coarse = case.read(fine), config.coarse
    view = view_volume(volume, fine, coarse.spacing)
    region = body_box(view, coarse.body_crop) if coarse.body_crop else Box.whole(view.shape)
    shape = view_volume(volume, fine).shape
    looked = _voxels(region.shape, coarse.patch_size or fine.patch, coarse.tile_step)
    there = found.at(threshold)
    boxes = there.boxes if there else 1.0
    return looked / _voxels(shape, fine.patch, config.fine.tile_step) + boxes


def _voxels(shape: Triple, patch: Triple, step: float) -> int:
    return count_tiles(shape, patch, step) * prod(patch)
