"""One case at a time: what thresholds miss of it, and what an earlier run that was cut short knows of that already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coarse2fine.calibration.cases import CalibrationCase, foreground_of
from coarse2fine.calibration.kit import files_of
from coarse2fine.calibration.misses import THRESHOLDS, MeasuredCase, measure_case
from coarse2fine.config.schema import Config
from coarse2fine.fine.segment import FineStage
from coarse2fine.io import atomic_write
from coarse2fine.nnunet.fingerprint import model_fingerprint
from coarse2fine.nnunet.model import Model
from coarse2fine.one_stage import segment_one_stage
from coarse2fine.promise.statement import settings_fingerprint
from coarse2fine.segmenter import check_models, make_segmenter, preset
from coarse2fine.system.timing import Run
from coarse2fine.training.dataset import read_labels


def measure(case: CalibrationCase, config: Config, coarse: Model, fine: Model, work: Path) -> MeasuredCase | None:
    """What each threshold misses of a case, now or in an earlier run that was cut short; None without foreground.

    Args:
        case: The case.
        config: Settings.
        coarse: The coarse model that may look at it: one that was not trained on it.
        fine: The fine model.
        work: Folder of what is known already.
    """
    config = preset(config)
    check_models(config, coarse, fine)
    about = {
        "files": files_of(case.files),
        "models": [model_fingerprint(model) for model in (coarse, fine)],
        "settings": settings_fingerprint(config),
        "thresholds": list(THRESHOLDS),
    }
    path = work / f"{case.name}.json"
    known = recall(path, about)
    if known is not None:
        return MeasuredCase.from_dict(known["case"]) if known["case"] else None
    volume = case.read(coarse, fine)
    if case.labels is None:
        labels = segment_one_stage(volume, config, coarse, fine, Run())
    else:
        labels = read_labels(case.labels, fine, volume)
    foreground, measured = foreground_of(labels, fine), None
    if foreground.any():
        measured = measure_case(make_segmenter(config, coarse, FineStage.of(fine, config)), volume, foreground)
    remember(path, about, {"case": measured and measured.to_dict()})
    return measured


def recall(path: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an earlier run left; None if it left nothing whole, or something about other files, models or settings."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) and known.get("about") == json.loads(json.dumps(about)) else None


def remember(path: Path, about: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Leave something for a later run."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"about": about, **found}), encoding="utf-8")
