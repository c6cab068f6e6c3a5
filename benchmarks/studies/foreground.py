"""How time grows with the share of foreground: volumes put together from a case's fullest and emptiest blocks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.common.bench import Bench, Effort, run_nnunet, run_ours
from benchmarks.common.registry import Case
from canvas import Box, Triple, triple
from coarse2fine.io import read_volume

Rows = list[dict[str, Any]]
SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)
SEED = 0
METHODS: dict[str, Callable[[Bench, Path], Effort]] = {"accelerated": run_ours, "nnunet": run_nnunet}


def foreground_share(bench: Bench, shares: Sequence[float], console: Console) -> Rows:
    """Seconds of coarse2fine and nnU-Net on volumes of one size with ever more foreground.

    The case is cut into blocks of half the fine model's patch on every axis, as far as they fit. Each block of a new
    volume is the block with the most foreground or the one with the least, at random places, so that everything is real
    data but the seams.

    Args:
        bench: The case.
        shares: Of the blocks that are the fullest one, 0 to 1, ascending.
        console: Told what was measured.

    Returns:
        A row for each share and method; ``foreground_share`` is that of voxels. Then a row of kind ``slope`` for each
        method: seconds for each per cent of foreground, by least squares.
    """
    rows: Rows = []
    for share in shares:
        with tempfile.TemporaryDirectory() as folder:
            mixed = write_mixed(bench, share, Path(folder))
            found = float(np.mean(mixed.reference > 0))
            for name, method in METHODS.items():
                effort = mixed.run(method, Path(folder) / f"labels{mixed.model('fine').dataset['file_ending']}")
                row = {"kind": "run", "mode": name, "full_blocks_share": share, "foreground_share": found}
                row |= {key: getattr(effort, key) for key in ("total_s", "coarse_s", "fine_s", "canvases", "fill")}
                rows.append(row | {"peak_rss_mb": effort.peak_rss_mb})
                console.print(f"{found:.2%} foreground, {name}: {effort.total_s:.1f} s", highlight=False)
    return rows + list(slopes(rows))


def slopes(rows: Rows) -> Iterator[dict[str, Any]]:
    """How seconds grow with foreground."""
    for name in METHODS:
        points = [(100 * row["foreground_share"], row["total_s"]) for row in rows if row["mode"] == name]
        if len({share for share, _ in points}) > 1:
            percents, seconds = np.array(points, float).T
            slope, start = np.polyfit(percents, seconds, 1)
            yield {"kind": "slope", "mode": name, "s_per_percent": float(slope), "at_none_s": float(start)}


def write_mixed(bench: Bench, share: float, folder: Path) -> Bench:
    """A bench whose case is put together from two blocks of another's."""
    volume, true = read_volume(bench.files), bench.reference
    plan = plan_blocks(true > 0, block_shape(bench), share)
    spacing = volume.grid.spacing[::-1]
    for file, channel in zip(bench.files, volume.channels, strict=True):
        _write(mix(channel, *plan), spacing, folder / file.name)
    _write(mix(true, *plan), spacing, folder / bench.case.reference.name)
    image = folder / bench.files[0].name
    name = f"{bench.case.name}, {share:.1%} full blocks"
    return bench.on(Case(name, bench.case.split, image, folder / bench.case.reference.name))


def block_shape(bench: Bench) -> Triple:
    """Half of the fine model's patch on every axis, in voxels of the file."""
    fine, grid = bench.model("fine"), read_volume([bench.case.reference]).grid
    edges = [fine.patch[axis] * fine.spacing[axis] / 2 for axis in fine.untranspose]
    return triple(
        min(size, max(1, round(edge / step))) for edge, step, size in zip(edges, grid.spacing, grid.shape, strict=True)
    )


def plan_blocks(mask: NDArray[np.bool_], shape: Triple, share: float) -> tuple[list[Box], list[Box]]:
    """Where blocks lie, and which block's content each gets.

    Args:
        mask: Foreground, (z, y, x).
        shape: Of a block; what is left at the ends of an axis stays as it is.
        share: Of the blocks that get the fullest one's content; the same places again for a smaller share.

    Returns:
        Targets and sources, pairwise.
    """
    corners = product(*(range(0, size - edge + 1, edge) for size, edge in zip(mask.shape, shape, strict=True)))
    targets = [Box.of(corner, shape) for corner in corners]
    counts = [int(np.count_nonzero(mask[target.slices])) for target in targets]
    fullest, emptiest = targets[int(np.argmax(counts))], targets[int(np.argmin(counts))]
    ranks = np.random.default_rng(SEED).permutation(len(targets))
    return targets, [fullest if rank < round(share * len(targets)) else emptiest for rank in ranks]


def mix(array: NDArray[Any], targets: Sequence[Box], sources: Sequence[Box]) -> NDArray[Any]:
    """A copy in which each target holds its source's voxels."""
    mixed = array.copy()
    for target, source in zip(targets, sources, strict=True):
        mixed[target.slices] = array[source.slices]
    return mixed


def _write(array: NDArray[Any], spacing: Sequence[float], path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=1)
