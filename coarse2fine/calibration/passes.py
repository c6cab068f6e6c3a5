"""The network passes over a whole case that much is measured with, each of which runs once: coarse, and one-stage."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.calibration.cases import CalibrationCase
from coarse2fine.calibration.kit import files_of
from coarse2fine.calibration.memory import recall_arrays, remember_arrays
from coarse2fine.coarse.heatmap import CoarseResult
from coarse2fine.config.schema import Config
from coarse2fine.io import Volume
from coarse2fine.nnunet.fingerprint import model_fingerprint
from coarse2fine.nnunet.model import Model
from coarse2fine.one_stage import segment_one_stage
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.segmenter import Segmenter
from coarse2fine.system.device import to_host, upload
from coarse2fine.system.timing import Run

Labels = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class CoarsePass:
    """What the coarse network said of a case.

    Attributes:
        result: That.
        seconds: It took, from the volume in memory on.
    """

    result: CoarseResult
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class OneStagePass:
    """What one-stage mode makes of a case.

    Attributes:
        labels: Shape (z, y, x) of the volume.
        seconds: It took, from the volume in memory to the labels in memory.
    """

    labels: Labels
    seconds: float


def coarse_pass(case: CalibrationCase, volume: Volume[NDArray[Any]], segmenter: Segmenter, work: Path) -> CoarsePass:
    """The coarse pass over a case, now or in an earlier run.

    Args:
        case: The case.
        volume: Its images.
        segmenter: With the coarse model that may look at it. What an agent sees beside the heatmap is not kept.
        work: Folder of what is known already.
    """
    config, fine = segmenter.config, segmenter.stage.model
    about = {
        "files": files_of(case.images),
        "models": [model_fingerprint(segmenter.coarse), list(fine.transpose), str(fine.reader)],
        "settings": config.coarse.model_dump(mode="json", exclude={"model", "folds", "checkpoint"}),
    }
    path = work / f"{case.name}.coarse.npz"
    if not segmenter.selector.features.wants_coarse:
        known = recall_arrays(path, about)
        if known is not None:
            logits = upload(known["logits"], segmenter.coarse.device)
            looked = CoarseResult(logits, known["heatmap"], segmenter.coarse)
            return CoarsePass(looked, float(known["seconds"]))
    began = time.perf_counter()
    looked = segmenter.heatmap(view_volume(volume, segmenter.coarse, config.coarse.spacing), Run())
    seconds = time.perf_counter() - began
    arrays = {"logits": to_host(looked.outputs), "heatmap": looked.heatmap, "seconds": np.array(seconds)}
    remember_arrays(path, about, arrays)
    return CoarsePass(looked, seconds)


def one_stage_pass(
    case: CalibrationCase, volume: Volume[NDArray[Any]], config: Config, coarse: Model | None, fine: Model, work: Path
) -> OneStagePass:
    """The labels that one-stage mode gives, now or in an earlier run.

    Inputs are mirrored only if the settings name ``fine.mirroring``: nothing takes eight times as long unasked.

    Args:
        case: The case.
        volume: Its images.
        config: Settings.
        coarse: The coarse model, which only cascades need.
        fine: The fine model.
        work: Folder of what is known already.
    """
    config = as_compared(config)
    models = (coarse, fine) if fine.cascade and coarse is not None else (fine,)
    about = {
        "files": files_of(case.images),
        "models": [model_fingerprint(model) for model in models],
        "settings": [config.fine.tile_step, config.fine.mirroring],
        "coarse": config.coarse.model_dump(mode="json", exclude={"model"}) if fine.cascade else None,
    }
    path = work / f"{case.name}.one-stage.npz"
    known = recall_arrays(path, about)
    if known is not None:
        return OneStagePass(known["labels"], float(known["seconds"]))
    began = time.perf_counter()
    labels = segment_one_stage(volume, config, coarse, fine, Run())
    seconds = time.perf_counter() - began
    remember_arrays(path, about, {"labels": labels, "seconds": np.array(seconds)})
    return OneStagePass(labels, seconds)


def as_compared(config: Config) -> Config:
    """The settings that one-stage mode and others are compared with: inputs are mirrored only if that was asked for."""
    if "mirroring" in config.fine.model_fields_set:
        return config
    return config.model_copy(update={"fine": config.fine.model_copy(update={"mirroring": False})})
