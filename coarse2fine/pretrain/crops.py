"""Random crops of unlabelled volumes, which are prepared once and then read from the disk where they are needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from canvas import Box, triple
from coarse2fine.errors import ImageError
from coarse2fine.io import Case, atomic_write, find_cases, input_suffixes, is_store, read_volume
from coarse2fine.io.files.readers import PICTURES
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import WorkingView, open_view, view_volume
from coarse2fine.pretrain.masks import centre_weights
from coarse2fine.pretrain.objective import Batch
from coarse2fine.pretrain.pictures import read_picture
from coarse2fine.pretrain.stores import Said, StoredVolume, about_store, open_stored
from coarse2fine.pretrain.table import Table
from coarse2fine.system.device import to_host
from coarse2fine.system.timing import Ticks

Floats = NDArray[np.float32]
STORE = "store"
"""In the place of a file's ending."""
_PICTURE_SPACING = (999.0, 1.0, 1.0)  # nnU-Net's own numbers
_SLAB = 64  # slices of a volume that are in memory at once while it is prepared


def find_images(folder: Path, model: Model) -> list[Case]:
    """The volumes of a folder, or of its ``imagesTr``, in files and stores, or a single store; never of ``imagesTs``.

    Raises:
        VolumeError: If there are none, or their channels are not the model's.
    """
    source = folder / "imagesTr" if (folder / "imagesTr").is_dir() else folder
    if is_store(str(source)):
        return [_stored(source)]
    there = sorted(source.iterdir()) if source.is_dir() else []
    stores = [path for path in there if path.suffix != ".zip" and not path.name.startswith(".") and is_store(str(path))]
    suffixes = input_suffixes(model.reader)
    if stores and not any(path.name.lower().endswith(tuple(suffixes)) for path in there if path not in stores):
        return [_stored(path) for path in stores]
    return [*map(_stored, stores), *find_cases(source, model.channels, suffixes)]


def _stored(path: Path) -> Case:
    return Case(path.name, (path,), STORE)


def find_slices(table: Table) -> list[Case]:
    """Pictures of a table as cases of a 2D configuration whose plans name nnU-Net's reader of pictures."""
    return [Case(row.name, (row.file,), row.file.suffix) for row in table.rows]


def prepare(files: Sequence[Path], model: Model, path: Path) -> Path:
    """Write a volume as inference would see it: turned, cropped to what is not zero, normalised, resampled.

    Args:
        files: One per channel of a volume; or a picture, if the model's reader reads such.
        model: Says how.
        path: Where to; what is there is taken for finished.

    Returns:
        An array of shape (channels, z, y, x) in NumPy's format.

    Raises:
        VolumeError: If the volume cannot be read, or does not fit the model.
        ImageError: Likewise of pictures.
    """
    if not path.exists():
        view = (
            view_picture(files[0], model)
            if model.reader == PICTURES
            else view_volume(read_volume(files, [model.reader]), model)
        )
        shape, depth = (model.channels, *view.shape), view.shape[0]
        with atomic_write(path, needed=4 * prod(shape)) as temporary:
            voxels = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
            for start in range(0, depth, _SLAB):
                slab = Box((start, 0, 0), (min(start + _SLAB, depth), *view.shape[1:]))
                voxels[:, slab.slices[0]] = to_host(view.read(slab))
            voxels.flush()
    return path


def view_picture(file: Path, model: Model) -> WorkingView:
    """As nnU-Net's reader gives it: a single slice, whose pixels have an edge of 1 and are far from any other.

    Raises:
        ImageError: If it cannot be read, or has other channels than the plans.
    """
    pixels = read_picture(file)
    if len(pixels) == 1 < model.channels:
        pixels = pixels.repeat(model.channels, 0)  # grey in a file that has three equal channels
    if len(pixels) != model.channels:
        raise ImageError(
            f"{file} has {len(pixels)} channels, the plans {model.channels}",
            "Convert it to grey, or use plans of pictures with as many channels.",
        )
    return open_view([channel[None] for channel in pixels], _PICTURE_SPACING, model)


@dataclass(frozen=True, slots=True, eq=False)
class Crops:
    """Where crops come from.

    Attributes:
        volumes: Each (channels, z, y, x), on the disk.
        patch: Shape of crops; if it has two axes, they are parts of slices along the first axis.
        sigma: Crops near a volume's centre are drawn more often, see ``centre_weights``; infinite: all alike.
    """

    volumes: Sequence[Floats]
    patch: tuple[int, ...]
    sigma: float = inf

    def draw(self, count: int, generator: np.random.Generator) -> Batch:
        """Crops, each of any volume; ``images`` has shape (count, channels, *patch)."""
        chosen = (self.volumes[int(generator.integers(len(self.volumes)))] for _ in range(count))
        crops = np.stack([self._crop(volume, generator) for volume in chosen])
        return {"images": torch.from_numpy(crops.reshape(*crops.shape[:2], *self.patch))}

    def _crop(self, volume: Floats, generator: np.random.Generator) -> Floats:
        patch = triple((1, *self.patch)[-3:])
        box = Box.of(random_start(triple(volume.shape[1:]), patch, self.sigma, generator), patch)
        inside = box.clip(Box.whole(triple(volume.shape[1:])))
        crop = np.zeros((len(volume), *patch), np.float32)
        crop[:, *inside.relative_to(box).slices] = volume[:, *inside.slices]
        return crop


class Arrays(Sequence[Floats]):
    """Volumes, of which arrays in files are opened when they are asked for: no process may hold thousands open."""

    def __init__(self, volumes: Sequence[Path | StoredVolume]) -> None:
        self._volumes = tuple(volumes)

    def __len__(self) -> int:
        return len(self._volumes)

    def __getitem__(self, index: Any) -> Any:
        volume = self._volumes[index]
        return np.load(volume, mmap_mode="r", allow_pickle=False) if isinstance(volume, Path) else volume


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
        cases: Of ``find_images`` or ``find_slices``.
        model: Of ``load_plans``.
        image: Shape of crops, see ``Crops``.
        sigma: See ``Crops``.
        said: Of all stores among them.
    """

    cases: Sequence[Case]
    model: Model
    image: tuple[int, ...]
    sigma: float = inf
    said: Said = field(default_factory=dict)

    @property
    def about(self) -> dict[str, object]:
        """Names, sizes and times of files, metadata of stores, and the plans that they are seen by."""
        stores = [about_store(case, self.said) for case in self.cases if case.suffix == STORE]
        return {
            **({"stores": stores} if stores else {}),
            "configuration": self.model.configuration,
            "plans": hashlib.sha256(json.dumps(self.model.plans, sort_keys=True).encode()).hexdigest(),
            "images": [case.name for case in self.cases],
            "files": about_files(file for case in self.cases for file in case.files),
        }

    def open(self, folder: Path, progress: Ticks = lambda done, total: None) -> Crops:
        """Crops of cases, which are prepared unless that was done; errors as of ``prepare`` and ``open_stored``."""
        volumes: list[Path | StoredVolume] = []
        for index, case in enumerate(self.cases):
            if case.suffix == STORE:
                volumes.append(open_stored(case, self.model, self.said, folder / f"{index}.json"))
            else:
                volumes.append(prepare(case.files, self.model, folder / f"{index}.npy"))
            progress(index + 1, len(self.cases))
        return Crops(Arrays(volumes), self.image, self.sigma)


def about_files(files: Iterable[Path]) -> list[list[object]]:
    """Name, size and time of each, so that one that has changed is noticed."""
    return [[file.name, file.stat().st_size, int(file.stat().st_mtime)] for file in files if file.is_file()]
