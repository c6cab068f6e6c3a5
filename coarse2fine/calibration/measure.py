"""One case at a time: what thresholds miss of it, and what an earlier run that was cut short knows of that already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.calibration.cases import CalibrationCase, foreground_of
from coarse2fine.calibration.kit import files_of
from coarse2fine.calibration.memory import recall, remember
from coarse2fine.calibration.misses import THRESHOLDS, MeasuredCase, jointly, measure_scene
from coarse2fine.calibration.passes import coarse_pass, one_stage_pass
from coarse2fine.coarse.scene import Scene
from coarse2fine.config.schema import Config
from coarse2fine.fine.segment import FineStage
from coarse2fine.io import Volume
from coarse2fine.nnunet.fingerprint import model_fingerprint
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.labels import read_labels
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.promise.statement import settings_fingerprint
from coarse2fine.segmenter import check_models, make_segmenter, preset


def measure(
    case: CalibrationCase,
    config: Config,
    coarse: Model,
    fine: Model,
    work: Path,
    also: Sequence[Config] = (),
) -> MeasuredCase | None:
    """What each threshold misses of a case, now or in an earlier run that was cut short; None without foreground.

    Args:
        case: The case.
        config: Settings.
        coarse: The coarse model that may look at it: one that was not trained on it.
        fine: The fine model.
        work: Folder of what is known already.
        also: Further settings, of the same coarse stage, which have to miss as little.
    """
    configs = [preset(settings) for settings in (config, *also)]
    for settings in configs:
        check_models(settings, coarse, fine)
    about = {
        "files": files_of(case.files),
        "models": [model_fingerprint(model) for model in (coarse, fine)],
        "settings": [settings_fingerprint(settings) for settings in configs],
        "thresholds": list(THRESHOLDS),
    }
    path = work / f"{case.name}.json"
    known = recall(path, about)
    if known is not None:
        return MeasuredCase.from_dict(known["case"]) if known["case"] else None
    volume = case.read(coarse, fine)
    if case.labels is None:
        labels = one_stage_pass(case, volume, config, coarse, fine, work).labels
    else:
        labels = read_labels(case.labels, fine, volume)
    foreground = foreground_of(labels, fine)
    measured = _measure(case, volume, foreground, configs, coarse, fine, work) if foreground.any() else None
    remember(path, about, {"case": measured and measured.to_dict()})
    return measured


def _measure(
    case: CalibrationCase,
    volume: Volume[NDArray[Any]],
    foreground: NDArray[np.bool_],
    configs: Sequence[Config],
    coarse: Model,
    fine: Model,
    work: Path,
) -> MeasuredCase:
    """With the worst of some settings."""
    segmenters = [make_segmenter(config, coarse, FineStage.of(fine, config)) for config in configs]
    looked = coarse_pass(case, volume, segmenters[0], work).result
    scene = Scene(view_volume(volume, fine), looked)
    return jointly([measure_scene(segmenter, volume, scene, foreground) for segmenter in segmenters])
