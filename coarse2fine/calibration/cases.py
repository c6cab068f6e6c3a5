"""The cases that a kit is made of, with labels or without."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.io import Volume, find_cases, find_labelled_cases, input_suffixes, read_volume
from coarse2fine.nnunet.model import Model


@dataclass(frozen=True, slots=True)
class CalibrationCase:
    """A case, with labels or without.

    Attributes:
        name: Of the case.
        images: One file per channel.
        labels: The true labels; None if foreground is what the fine model finds everywhere.
    """

    name: str
    images: tuple[Path, ...]
    labels: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the case."""
        return (*self.images, self.labels) if self.labels else self.images

    def read(self, *models: Model) -> Volume[NDArray[Any]]:
        """The images, as these models' readers see them."""
        volume: Volume[NDArray[Any]] = read_volume(list(self.images), [model.reader for model in models])
        return volume


def find_calibration_cases(folder: Path, fine: Model) -> list[CalibrationCase]:
    """Cases of a folder with ``imagesTr`` and ``labelsTr``, or with ``imagesTr`` alone, or of a folder of images.

    Raises:
        VolumeError: If there are none, or only some have labels.
    """
    images = folder / "imagesTr" if (folder / "imagesTr").is_dir() else folder
    if (folder / "labelsTr").is_dir():
        labelled = find_labelled_cases(folder, fine.channels, fine.reader)
        return [CalibrationCase(case.name, case.images, case.labels) for case in labelled]
    found = find_cases(images, fine.channels, input_suffixes(fine.reader))
    return [CalibrationCase(case.name, case.files, None) for case in found]


def foreground_of(labels: NDArray[Any], fine: Model) -> NDArray[np.bool_]:
    """Where labels are foreground; what nobody has decided is none."""
    return np.isin(labels, fine.labels.foreground)
