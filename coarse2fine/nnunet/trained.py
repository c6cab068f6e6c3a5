"""Trained models where nnU-Net keeps them: ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from coarse2fine.errors import ConfigError
from coarse2fine.system.terminal import plain

VARIABLE = "nnUNet_results"
LOWRES = "3d_lowres"
_LISTED = 20


@dataclass(frozen=True, slots=True)
class Trained:
    """The models that one trainer made of one data set with one plan.

    Attributes:
        folder: Of the data set's models.
        trainer, plans: As in the folders' names.
    """

    folder: Path
    trainer: str
    plans: str

    def model(self, configuration: str) -> Path:
        """The model folder of a configuration.

        Raises:
            ConfigError: If there is none, naming those that are there.
        """
        folder = self._folder(configuration)
        if folder.is_dir():
            return folder
        there = _names(path.name for path in self.folder.glob("*__*__*") if path.is_dir())
        raise ConfigError(
            f"{self.folder} has no model {folder.name}",
            f"There are (trainer -tr, plans -p, configuration -c): {there}.",
        )

    @property
    def lowres(self) -> Path | None:
        """The model folder of the low resolution, if it was trained."""
        folder = self._folder(LOWRES)
        return folder if folder.is_dir() else None

    def _folder(self, configuration: str) -> Path:
        return self.folder / f"{self.trainer}__{self.plans}__{configuration}"


def find_trained(dataset: str, trainer: str, plans: str) -> Trained:
    """The models of a data set.

    Args:
        dataset: Its number or its name, as ``nnUNetv2_predict -d`` takes it.
        trainer: Of the models.
        plans: Likewise.

    Raises:
        ConfigError: If the environment does not say where models are, or there is no such data set, naming those that
            are there.
    """
    results = _results_folder()
    there = sorted(path.name for path in results.glob("Dataset[0-9][0-9][0-9]_*") if path.is_dir())
    if dataset.isdecimal():
        found = [name for name in there if int(name[7:10]) == int(dataset)]
    else:
        found = [name for name in there if name == dataset]
    if len(found) == 1:
        return Trained(results / found[0], trainer, plans)
    if found:
        raise ConfigError(f"-d {dataset} may be {' or '.join(found)}", "Give its whole name with -d.")
    raise ConfigError(
        f"no data set {plain(dataset)} in {results} ({VARIABLE})",
        f"There are: {_names(there)}." if there else f"Set {VARIABLE} to the folder that holds your trained data sets.",
    )


def _results_folder() -> Path:
    """Where the environment says that models are."""
    name = os.environ.get(VARIABLE)
    if not name:
        raise ConfigError(
            f"{VARIABLE} is not set, so that nobody knows where trained models are",
            f"Set it to nnU-Net's results folder (export {VARIABLE}=FOLDER), or use c2f-infer --fine-model FOLDER.",
        )
    if not Path(name).is_dir():
        raise ConfigError(f"{name} ({VARIABLE}) is no folder", f"Set {VARIABLE} to nnU-Net's results folder.")
    return Path(name)


def _names(found: Iterable[str]) -> str:
    names = sorted(found)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return plain(", ".join(names[:_LISTED])) + more if names else "none"
