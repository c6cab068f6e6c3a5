"""Random crops of unlabelled volumes, which are prepared once and then read from the disk where they are needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.errors import VolumeError
from coarse2fine.io import Case, atomic_write, find_cases, input_suffixes, is_store, read_volume
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.pretrain.masks import centre_weights
from coarse2fine.pretrain.objective import Batch
from coarse2fine.system.timing import Ticks

Floats = NDArray[np.float32]
_SLAB = 64  # slices of a volume that are in memory at once while it is prepared


def find_images(folder: Path, model: Model) -> list[Case]:
    """The volumes of a folder, or of its ``imagesTr``; never those of ``imagesTs``.

    Raises:
        VolumeError: If there are none, or their channels are not the model's.
    """
    source = folder / "imagesTr" if (folder / "imagesTr").is_dir() else folder
    there = [source, *(sorted(source.iterdir()) if source.is_dir() else [])]
    store = next((path for path in there if path.suffix != ".zip" and is_store(str(path))), None)
    if store:
        raise VolumeError(
            f"{store} is a store, and pretraining reads files only",
            "Save parts of it as .nii.gz files, and give their folder.",
        )
    return find_cases(source, model.channels, input_suffixes(model.reader))


def prepare(case: Case, model: Model, folder: Path) -> Path:
    """Write a volume as inference would see it: turned, cropped to what is not zero, normalised, resampled.

    Args:
        case: The volume.
        model: Says how.
        folder: Where to.

    Returns:
        An array of shape (channels, z, y, x) in NumPy's format; one that is there is taken for finished.

    Raises:
        VolumeError: If the volume cannot be read, or does not fit the model.
    """
    path = folder / f"{case.name}.npy"
    if not path.exists():
        view = view_volume(read_volume(case.files, [model.reader]), model)
        shape, depth = (model.channels, *view.shape), view.shape[0]
        with atomic_write(path, needed=4 * prod(shape)) as temporary:
            voxels = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
            for start in range(0, depth, _SLAB):
                slab = Box((start, 0, 0), (min(start + _SLAB, depth), *view.shape[1:]))
                voxels[:, slab.slices[0]] = view.read(slab)
            voxels.flush()
    return path


@dataclass(frozen=True, slots=True, eq=False)
class Crops:
    """Where crops come from.

    Attributes:
        volumes: Each (channels, z, y, x), on the disk.
        patch: Shape of crops.
        sigma: Crops near a volume's centre are drawn more often, see ``centre_weights``; infinite: all alike.
    """

    volumes: tuple[Floats, ...]
    patch: Triple
    sigma: float = inf

    def draw(self, count: int, generator: np.random.Generator) -> Batch:
        """Crops, each of any volume; ``images`` has shape (count, channels, *patch)."""
        chosen = (self.volumes[int(generator.integers(len(self.volumes)))] for _ in range(count))
        return {"images": torch.from_numpy(np.stack([self._crop(volume, generator) for volume in chosen]))}

    def _crop(self, volume: Floats, generator: np.random.Generator) -> Floats:
        box = Box.of(random_start(triple(volume.shape[1:]), self.patch, self.sigma, generator), self.patch)
        inside = box.clip(Box.whole(triple(volume.shape[1:])))
        crop = np.zeros((len(volume), *self.patch), np.float32)
        crop[:, *inside.relative_to(box).slices] = volume[:, *inside.slices]
        return crop


def random_start(
    shape: Sequence[int], patch: Sequence[int], sigma: float, generator: np.random.Generator
) -> tuple[int, ...]:
    """Where a random crop begins.

    Along an axis where the volume is smaller, it lies in the middle of the crop, as nnU-Net pads. Centres of crops have
    the density of ``centre_weights`` over the volume, by rejection.

    Args:
        shape: Of the volume.
        patch: Of the crop.
        sigma: Of the density; infinite: all places alike.
        generator: Source of random numbers.
    """
    spare = np.subtract(shape, patch)
    while True:
        start = np.where(spare > 0, generator.integers(0, np.maximum(spare, 0) + 1), spare // 2)
        centre = (2 * start + np.asarray(patch)) / np.asarray(shape) - 1
        centre = np.where(spare > 0, centre, 0)
        if np.log1p(-generator.random()) <= centre_weights(centre, sigma):  # 1 - random is never 0
            return tuple(map(int, start))


@dataclass(frozen=True, slots=True)
class Volumes:
    """Volumes of a folder, as data of a pretraining.

    Attributes:
        cases: Of ``find_images``.
        model: Of ``load_plans``.
        sigma: See ``Crops``.
    """

    cases: Sequence[Case]
    model: Model
    sigma: float = inf

    @property
    def about(self) -> dict[str, object]:
        """Names, sizes and times of files, and the plans that they are seen by."""
        files = [file for case in self.cases for file in case.files if file.is_file()]
        return {
            "configuration": self.model.configuration,
            "plans": hashlib.sha256(json.dumps(self.model.plans, sort_keys=True).encode()).hexdigest(),
            "images": [case.name for case in self.cases],
            "files": [[file.name, file.stat().st_size, int(file.stat().st_mtime)] for file in files],
        }

    def open(self, folder: Path, progress: Ticks = lambda done, total: None) -> Crops:
        """Crops of cases, which are prepared unless that was done; errors as of ``prepare``."""
        volumes = []
        for index, case in enumerate(self.cases):
            path = prepare(case, self.model, folder)
            volumes.append(np.load(path, mmap_mode="r", allow_pickle=False))
            progress(index + 1, len(self.cases))
        return Crops(tuple(volumes), self.model.patch, self.sigma)
