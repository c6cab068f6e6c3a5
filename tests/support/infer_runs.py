"""Runs of c2f-infer: inputs, the command, and what it wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from conftest import blobs

from coarse2fine.cli import infer as cli
from coarse2fine.io import Grid

Models = dict[str, Path]
SHAPE = (12, 28, 30)
TURN = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.5).GetMatrix()
OBLIQUE = Grid(SHAPE, (2.0, 0.8, 0.9), origin=(-340.125, 187.5, -166.25), direction=TURN)


def use(models: Models, coarse: str | None = "coarse", fine: str | None = "fine") -> list[str]:
    """Arguments for a run with these kinds of models, wherever there is a GPU on the CPU."""
    kinds = {"--coarse-model": coarse, "--fine-model": fine}
    return ["--device", "cpu", *(f"{option}={models[kind]}" for option, kind in kinds.items() if kind)]


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def save(path: Path, array: np.ndarray | None = None, grid: Grid = OBLIQUE) -> Path:
    image = sitk.GetImageFromArray(blobs(SHAPE) if array is None else array)
    image.SetSpacing(grid.spacing[::-1])
    image.SetOrigin(grid.origin[::-1])
    image.SetDirection(grid.direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)
    return path


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def assert_same_grid(path: Path, source: Path) -> None:
    """Formats store directions as rounded quaternions or decimals, so that they may differ by rounding."""
    ours, theirs = sitk.ReadImage(str(path)), sitk.ReadImage(str(source))
    assert ours.GetSize() == theirs.GetSize()
    np.testing.assert_allclose(ours.GetSpacing(), theirs.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(ours.GetOrigin(), theirs.GetOrigin(), rtol=1e-6)
    np.testing.assert_allclose(ours.GetDirection(), theirs.GetDirection(), atol=1e-6)


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file with its content, and every folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
