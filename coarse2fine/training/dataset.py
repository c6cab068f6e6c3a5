"""From a folder of labelled cases to training instances on disk, built once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from assignnet.value.instance import Instance, read_instances, write_instances
from coarse2fine.config.schema import Config
from coarse2fine.io import LabelledCase, atomic_write, read_volume
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.labels import read_labels
from coarse2fine.selection.features import FeatureSettings, feature_model_fingerprint
from coarse2fine.system.timing import Ticks
from coarse2fine.training.outcomes import OutcomeSettings, measure_outcomes

FEW = 4
"""From this many cases on, whole cases are held out for validation; of fewer, a part of each."""
PARTS = (("train", (0.0, 0.7)), ("validation", (0.7, 1.0)))


def build_instances(
    cases: Sequence[LabelledCase],
    coarse: Model,
    fine: Model,
    config: Config,
    features: FeatureSettings,
    settings: OutcomeSettings,
    *,
    seed: int = 0,
    split: bool = True,
    progress: Ticks = lambda done, total: None,
) -> list[Instance]:
    """Instances of labelled cases.

    Args:
        cases: The cases.
        coarse: The coarse model.
        fine: The fine model.
        config: Settings.
        features: What is computed of every region.
        settings: How many instances.
        seed: Fixes perturbations and sub-volumes.
        split: Name a part of few cases "validation", disjoint from the rest (see ``FEW``).
        progress: Told about cases.

    Raises:
        VolumeError: If labels cannot be read, are not the model's, or do not fit their image.
    """
    instances: list[Instance] = []
    parts = PARTS if split and len(cases) < FEW else (("whole", (0.0, 1.0)),)
    for index, case in enumerate(cases):
        volume = read_volume(list(case.images), [coarse.reader, fine.reader])
        labels = read_labels(case.labels, fine, volume)
        instances += measure_outcomes(
            volume, labels, coarse, fine, config, features, settings, parts=parts, seed=seed + index
        )
        progress(index + 1, len(cases))
    return instances


def split_instances(instances: Sequence[Instance]) -> tuple[list[Instance], list[Instance]]:
    """Training and validation instances: by part of the volume where there are parts, else the last fifth of cases.

    Args:
        instances: From ``build_instances``; cases without any do not count.
    """
    cases = list(dict.fromkeys(instance.case for instance in instances))
    if any(case.endswith("/validation") for case in cases):
        held = {case for case in cases if case.endswith("/validation")}
    else:
        held = set(cases[-max(1, len(cases) // 5) :])
    train = [instance for instance in instances if instance.case not in held]
    return train, [instance for instance in instances if instance.case in held]


def cached_instances(path: Path, about: dict[str, Any], build: Callable[[], list[Instance]]) -> list[Instance]:
    """Instances from a file that was built in the same way, else built now and stored there.

    Args:
        path: HDF5 file.
        about: How they are made; a file that was made in another way is replaced.
        build: Makes them.
    """
    about = json.loads(json.dumps(about))  # as it comes back from the file
    if path.exists():
        try:
            instances, made = read_instances(path)
        except (OSError, ValueError, LookupError, TypeError, RuntimeError):  # another version's, cut off, or damaged
            made = None
        if made == about:
            return instances
    instances = build()
    with atomic_write(path) as temporary:
        write_instances(temporary, instances, about)
    return instances


def how_made(
    cases: Sequence[LabelledCase],
    coarse: Model,
    fine: Model,
    config: Config,
    features: FeatureSettings,
    settings: OutcomeSettings,
    seed: int,
) -> dict[str, Any]:
    """Everything that instances depend on, JSON-ready: files by name, size and time, models by their weights."""
    values = config.to_dict()
    for section in ("coarse", "fine"):
        values[section] = {key: value for key, value in values[section].items() if key != "model"}
    files = [file for case in cases for file in (*case.images, case.labels)]
    return {
        "cases": [case.name for case in cases],
        "files": [[file.name, file.stat().st_size, int(file.stat().st_mtime)] for file in files],
        "coarse": feature_model_fingerprint(coarse),
        "fine": feature_model_fingerprint(fine),
        "config": {key: value for key, value in values.items() if key not in ("assign", "deadline", "device")},
        "problem": {key: values["assign"][key] for key in ("drop", "keep", "budget")},
        "readers": [coarse.reader.name, fine.reader.name],
        "features": asdict(features),
        "settings": asdict(settings),
        "seed": seed,
    }
