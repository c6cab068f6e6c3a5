"""Small CT volumes and masks as their publishers store them, and runs of c2f-convert on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from coarse2fine.cli.convert import main

SHAPE = (4, 6, 8)


def save(
    path: Path,
    voxels: np.ndarray,
    spacing: tuple[float, ...] = (0.7, 0.7, 2.5),
    origin: tuple[float, ...] = (-166.0, 187.6, -340.0),
    direction: tuple[float, ...] = (1, 0, 0, 0, -1, 0, 0, 0, 1),
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return path


def ct(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 500, shape, dtype=np.int16)


def mask(seed: int = 0, top: int = 1) -> np.ndarray:
    """All labels up to ``top``."""
    voxels = np.random.default_rng(seed).integers(0, top, SHAPE, dtype=np.uint16, endpoint=True)
    voxels.flat[: top + 1] = range(top + 1)
    return voxels


def covid_case(folder: Path, number: str, seed: int) -> None:
    save(folder / f"volume-covid19-A-{number}_ct.nii.gz", ct(seed))
    save(folder / f"volume-covid19-A-{number}_seg.nii.gz", mask(seed))


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}
