"""How time and memory grow with the volume: a case tiled by mirroring, from file to file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.common.bench import Bench, Effort, run_nnunet, run_ours
from benchmarks.common.registry import Case
from canvas import Triple, triple
from coarse2fine.errors import C2FError
from coarse2fine.io import read_volume
from coarse2fine.nnunet.model import Model, tile_starts
from coarse2fine.preprocessing.working_grid import view_volume

Rows = list[dict[str, Any]]
FACTORS = (1, 2, 4, 8, 16)
MODES: dict[str, Callable[[Bench, Path], Effort]] = {"accelerated": run_ours, "nnunet": run_nnunet}
MEASURED = 2
"""nnU-Net is run up to so many times the volume; beyond, its figures are extrapolated."""
MEGA, GIGA = 1e6, 1e9


def grow(bench: Bench, factors: Sequence[int], console: Console) -> Rows:
    """Seconds and peak memory of both modes on ever larger volumes.

    Args:
        bench: The case that is tiled.
        factors: Powers of two: how many times its volume.
        console: Told what was measured.

    Returns:
        For each factor and mode one row of kind ``run``; where ``extrapolated`` is true, its seconds follow from the
        number of tiles and the tiles per second of the largest measured volume, its memory from a line through the
        measured ones (None if there are fewer than two). For each mode with at least two measured volumes a row of kind
        ``slope``: the least-squares lines through them.

    Raises:
        C2FError: If a factor is no power of two.
    """
    for factor in factors:
        if factor < 1 or log2(factor) % 1:
            raise C2FError(f"a volume cannot be mirrored to {factor} times its size", "Choose powers of two.")
    rows: Rows = []
    for factor in factors:
        with tempfile.TemporaryDirectory() as folder:
            tiled, voxels = write_tiled(bench, factor, Path(folder))
            for mode, method in MODES.items():
                row: dict[str, Any] = {"kind": "run", "mode": mode, "volume_times": factor, "gvoxels": voxels / GIGA}
                if mode == "nnunet" and factor > MEASURED:
                    row |= extrapolate([one for one in rows if one["mode"] == mode], tile_count(tiled), row["gvoxels"])
                else:
                    effort = tiled.run(method, Path(folder) / f"labels{tiled.model('fine').dataset['file_ending']}")
                    times = {name: getattr(effort, name) for name in ("total_s", "coarse_s", "fine_s", "network_s")}
                    row |= {**times, "peak_rss_mb": effort.peak_rss_mb, "peak_gpu_mb": effort.peak_gpu_mb}
                    row |= {"canvases": effort.canvases, "extrapolated": False}
                rows.append(row)
                how = "about " if row["extrapolated"] else ""
                console.print(f"{factor}x {mode}: {how}{row['total_s']:.1f} s", highlight=False)
    return rows + list(slopes(rows))


def write_tiled(bench: Bench, factor: int, folder: Path) -> tuple[Bench, int]:
    """A bench whose case is a mirrored tiling of another's, and its voxels. Keeps nothing of it in memory."""
    volume = read_volume(bench.files)
    spacing, shape = volume.grid.spacing[::-1], (0,)
    for file, channel in zip(bench.files, volume.channels, strict=True):
        array = mirror(channel, factor)
        image, shape = sitk.GetImageFromArray(array), array.shape
        image.SetSpacing(spacing)
        sitk.WriteImage(image, str(folder / file.name), useCompression=True, compressionLevel=1)
    image_file = folder / bench.files[0].name
    case = Case(f"{bench.case.name}, {factor} times", bench.case.split, image_file, bench.case.reference)
    return bench.on(case), int(np.prod(shape))


def mirror(array: NDArray[Any], factor: int) -> NDArray[Any]:
    """Tile by mirroring along the two longest axes, always the shorter of them, so that it stays compact.

    >>> mirror(np.arange(6).reshape(1, 2, 3), 2).tolist()
    [[[0, 1, 2], [3, 4, 5], [3, 4, 5], [0, 1, 2]]]
    """
    long = sorted(range(3), key=lambda axis: array.shape[axis])[1:]
    for _ in range(int(log2(factor))):
        axis = min(long, key=lambda one: array.shape[one])
        array = np.concatenate([array, np.flip(array, axis)], axis=axis)
    return array


def tile_count(bench: Bench) -> int:
    """Tiles of the sliding window over a whole case."""
    volume, fine = read_volume(bench.files), bench.model("fine")
    shape = view_volume(volume, fine).shape
    return count_tiles(shape, fine, bench.config().fine.tile_step)


def count_tiles(shape: Triple, model: Model, step: float) -> int:
    """Tiles of the sliding window over a working grid; nnU-Net pads what is smaller than a tile."""
    padded = triple(np.maximum(shape, model.patch))
    return sum(1 for _ in tile_starts(padded, model.patch, step))


def extrapolate(measured: Sequence[dict[str, Any]], tiles: int, gvoxels: float) -> dict[str, Any]:
    """What nnU-Net would take on a larger volume.

    Raises:
        C2FError: If nothing was measured.
    """
    if not measured:
        raise C2FError("nnU-Net was not measured on any volume", f"Take a factor up to {MEASURED}, too.")
    known = [row for row in measured if not row["extrapolated"]]
    largest = known[-1]
    row: dict[str, Any] = {
        name: largest[name] * tiles / largest["canvases"] for name in ("total_s", "fine_s", "network_s")
    }
    return row | {
        "coarse_s": 0.0,
        "peak_rss_mb": at(known, "peak_rss_mb", gvoxels),
        "peak_gpu_mb": at(known, "peak_gpu_mb", gvoxels),
        "canvases": tiles,
        "extrapolated": True,
    }


def at(rows: Sequence[dict[str, Any]], name: str, gvoxels: float) -> float | None:
    """A line through a figure, read at another volume; None if it is not known at two volumes."""
    line = fit(rows, name)
    return None if line is None else float(np.polyval(line, gvoxels))


def fit(rows: Sequence[dict[str, Any]], name: str) -> NDArray[np.float64] | None:
    """Slope per Gvoxel and value at none, by least squares; None if it is not known at two volumes."""
    known = [(row["gvoxels"], row[name]) for row in rows if row[name] is not None]
    if len({gvoxels for gvoxels, _ in known}) < 2:
        return None
    volumes, values = np.array(known, float).T
    return np.polyfit(volumes, values, 1)


def slopes(rows: Rows) -> Iterator[dict[str, Any]]:
    """How measured figures grow with the volume, mode by mode."""
    for mode in MODES:
        measured = [row for row in rows if row["mode"] == mode and not row["extrapolated"]]
        seconds, memory = fit(measured, "total_s"), fit(measured, "peak_rss_mb")
        if seconds is not None:
            yield {
                "kind": "slope",
                "mode": mode,
                "volumes": len(measured),
                "s_per_gvoxel": float(seconds[0]),
                "at_none_s": float(seconds[1]),
                "mb_per_gvoxel": None if memory is None else float(memory[0]),
                "at_none_mb": None if memory is None else float(memory[1]),
            }
