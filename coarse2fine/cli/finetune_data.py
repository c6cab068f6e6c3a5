"""What ``c2f-finetune`` learns from: pictures or volumes of a table, or labelled volumes in nnU-Net's layout."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from coarse2fine.errors import ConfigError
from coarse2fine.finetune.begin import Start
from coarse2fine.finetune.gather import Asked, Chosen, choose, load
from coarse2fine.finetune.run import Labelled, Settings
from coarse2fine.finetune.volume_table import (
    ChosenOfTable,
    VolumeTable,
    choose_of_table,
    load_of_table,
    read_volume_table,
)
from coarse2fine.finetune.volumes import ChosenVolumes, choose_volumes, load_volumes
from coarse2fine.nnunet.loading import load_plans, with_labels
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain.table import Table, read_table
from coarse2fine.pretrain.weights import is_vit, read_intensities, vit_shape
from coarse2fine.system.timing import Ticks


def check_data(options: argparse.Namespace) -> None:
    """See that one kind of labels is asked for.

    Raises:
        ConfigError: If none is, or several are.
    """
    if (options.table is None) == (options.data is None):
        raise ConfigError(
            "there is nothing to learn from" if options.table is None else "--table and --data contradict each other",
            "Give --table of pictures or volumes, or --data with volumes in nnU-Net's raw layout.",
        )
    asked = [f"--{name}" for name in ("labels", "classes", "masks") if getattr(options, name) is not None]
    if options.table is not None and len(asked) != 1:
        raise ConfigError(
            f"{' and '.join(asked)} contradict each other" if asked else "it is not said what to learn of the table",
            "Give one of --labels, --classes and --masks.",
        )
    if options.data is not None and asked:
        raise ConfigError(f"{asked[0]} is of a table, not of --data", f"Leave out {asked[0]}.")


def model_of(options: argparse.Namespace) -> Model | None:
    """What plans say, and of volumes the labels.

    Raises:
        C2FError: If they are missing or malformed.
    """
    if options.plans and options.model:
        raise ConfigError("--plans and --model contradict each other", "Leave one of them out.")
    path: Path | None = options.plans or (options.model and options.model / "plans.json")
    if path is None:
        return None
    model = load_plans(path, options.configuration, flat=options.table is not None)
    return with_labels(model, options.data / "dataset.json") if options.data else model


def rows_of(options: argparse.Namespace, model: Model | None) -> Table | VolumeTable | None:
    """The table's pictures, or its volumes if plans of a 3D configuration are named; None: it is --data.

    Raises:
        C2FError: If the table cannot be read, or names what is not there.
    """
    if options.table is None:
        return None
    if model is None or model.flat:
        if model is None and options.weights and is_vit(options.weights) and len(vit_shape(options.weights).image) == 3:
            raise no_plans()
        return read_table(options.table, options.images)
    if options.masks is not None:
        raise ConfigError(
            f"--masks are of pictures, and the configuration {model.configuration} sees volumes",
            "Give volumes with a label for each voxel by --data, or plans of a 2D configuration (-c 2d).",
        )
    return read_volume_table(options.table, options.images, model)


def choose_of(
    options: argparse.Namespace, rows: Table | VolumeTable | None, model: Model | None, settings: Settings
) -> Chosen | ChosenOfTable | ChosenVolumes:
    """Labels, and what is held out.

    Raises:
        C2FError: If something is missing or does not fit.
    """
    labels = tuple(options.labels.split(",")) if options.labels is not None else ()
    asked = Asked(labels, options.classes, options.masks)
    if isinstance(rows, Table):
        return choose(rows, asked, settings)
    if rows is not None:
        return choose_of_table(rows, asked, settings)
    if model is None:
        raise no_plans()
    return choose_volumes(options.data, model, settings)


def load_of(
    chosen: Chosen | ChosenOfTable | ChosenVolumes, start: Start, settings: Settings, folder: Path, progress: Ticks
) -> Labelled:
    """Read images, and take a share of those to learn from; errors as of what reads them."""
    if isinstance(chosen, ChosenVolumes):
        return load_volumes(chosen, start.patch, settings, folder, progress)
    if isinstance(chosen, ChosenOfTable):
        return load_of_table(chosen, start.patch, settings, folder, progress)
    height, width = start.patch
    known = read_intensities(start.weights) if start.weights else None
    data = load(chosen, (height, width), start.network.channels, settings, folder, known, progress)
    return replace(data, model=start.network) if isinstance(start.network, Model) else data


def no_plans() -> ConfigError:
    """What is wrong if volumes come without plans."""
    return ConfigError("volumes need plans, which say how they are seen", "Name them: --plans nnUNetPlans.json.")
