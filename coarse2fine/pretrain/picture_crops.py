"""Random crops of pictures, of random size and brought to one shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from coarse2fine.pretrain.crops import about_files, random_start
from coarse2fine.pretrain.objective import Batch
from coarse2fine.pretrain.pictures import Floats, Intensities, Pixels, load_pictures
from coarse2fine.pretrain.table import Table
from coarse2fine.system.timing import Ticks

AREA = (0.5, 1.0)
"""Share of a picture's area that crops cover, as for radiographs (Xiao and others, WACV 2023)."""
_STRETCH = 4 / 3  # most of a crop's width over its height, or the other way round (Szegedy and others, CVPR 2015)
_TRIES = 10


@dataclass(frozen=True, slots=True, eq=False)
class PictureCrops:
    """Where crops come from.

    Attributes:
        pixels: Shape (n, channels, height, width).
        intensities: How they are normalised.
        shape: Of crops; None: as pictures.
        area: Least and largest share of the area.
        sigma: Crops near the centre are drawn more often, see ``centre_weights``; infinite: all alike.
        flip: Whether half of the crops are mirrored, left to right.
    """

    pixels: Pixels
    intensities: Intensities
    shape: tuple[int, int] | None = None
    area: tuple[float, float] = AREA
    sigma: float = inf
    flip: bool = False

    def draw(self, count: int, generator: np.random.Generator) -> Batch:
        """Crops, each of any picture; ``images`` has shape (count, channels, *shape), and ``index`` says which."""
        index = generator.integers(len(self.pixels), size=count)
        return {"images": self.crops_of(index, generator), "index": torch.from_numpy(index)}

    def crops_of(self, index: Sequence[int] | np.ndarray, generator: np.random.Generator) -> torch.Tensor:
        """A crop of each of some pictures; shape (len(index), channels, *shape)."""
        return torch.stack([self._crop(self.pixels[int(at)], generator) for at in index])

    def _crop(self, image: Pixels, generator: np.random.Generator) -> torch.Tensor:
        height, width = image.shape[1:]
        box = random_box((height, width), generator, self.area, self.sigma)
        crop = resize(self.intensities.normalise(image[:, *box]), self.shape or (height, width))
        return crop.flip(2) if self.flip and generator.random() < 0.5 else crop


@dataclass(frozen=True, slots=True, eq=False)
class PictureData:
    """Pictures as data of a pretraining.

    Attributes:
        table: Which.
        shape: To which they are brought, and crops, too.
        pixels: What they hold, if that is known already, of ``read_arrays``.
        area, sigma, flip: See ``PictureCrops``.
    """

    table: Table
    shape: tuple[int, int]
    pixels: Pixels | None = None
    area: tuple[float, float] = AREA
    sigma: float = inf
    flip: bool = False

    @property
    def about(self) -> dict[str, object]:
        """Names of pictures, sizes and times of their files, and how crops are drawn."""
        return {
            "images": [row.name for row in self.table.rows],
            "files": about_files(dict.fromkeys(self.table.files)),
            "area": list(self.area),
            "flip": self.flip,
        }

    def open(self, folder: Path, progress: Ticks = lambda done, total: None) -> PictureCrops:
        """Crops of all of them, which are read unless that was done; errors as of ``load_pictures``."""
        pixels = self.pixels
        if pixels is None:
            pixels = load_pictures(self.table.files, self.shape, cache=folder / "pictures.npy", progress=progress)
        return PictureCrops(pixels, Intensities.of(pixels), self.shape, self.area, self.sigma, self.flip)


def random_box(
    shape: tuple[int, int], generator: np.random.Generator, area: tuple[float, float] = AREA, sigma: float = inf
) -> tuple[slice, slice]:
    """Part of a picture whose share of the area is uniform, and the logarithm of whose proportions is.

    Args:
        shape: Of the picture.
        generator: Source of random numbers.
        area: Least and largest share.
        sigma: Of the density of its centre, as of ``random_start``.

    Returns:
        Rows and columns; all of them if nothing that was drawn fits.
    """
    height, width = shape
    for _ in range(_TRIES):
        edge = (generator.uniform(*area) * height * width) ** 0.5
        stretch = exp(generator.uniform(-log(_STRETCH), log(_STRETCH)) / 2)
        rows, columns = max(1, round(edge / stretch)), max(1, round(edge * stretch))
        if rows <= height and columns <= width:
            top, left = random_start(shape, (rows, columns), sigma, generator)
            return slice(top, top + rows), slice(left, left + columns)
    return slice(0, height), slice(0, width)


def resize(image: Floats, shape: Sequence[int]) -> torch.Tensor:
    """Interpolate linearly, without aliasing; shape (channels, height, width)."""
    tensor = torch.from_numpy(np.ascontiguousarray(image))
    if tuple(tensor.shape[1:]) == tuple(shape):
        return tensor
    return F.interpolate(tensor[None], list(shape), mode="bilinear", align_corners=False, antialias=True)[0]
