"""Volumes thinner than a patch, and objects at a volume's border: is packing as good there as two-stage mode?

    python benchmarks/slabs.py --dataset lung
    python benchmarks/slabs.py --dataset ms --thickness 1 8 --axes z --modes accelerated two-stage one-stage
    python benchmarks/slabs.py --dataset lung --border

Slabs of a case are cut out around its largest object, across each axis, and segmented in each mode. With ``--border``
the case is cut through that object instead, so that it lies at one side of what is left. The exit code is 1 if
accelerated mode stays more than ``TOLERANCE`` of Dice behind two-stage mode anywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from bench import Bench
from numpy.typing import NDArray
from registry import choose_case, dataset_names, load_dataset
from rich.console import Console
from rich.table import Table

from canvas import Box, triple
from coarse2fine.allocator import keep_freed_memory
from coarse2fine.components import label_components
from coarse2fine.errors import C2FError
from coarse2fine.io import Volume, read_volume
from coarse2fine.metrics import dice

AXES = "zyx"
MODES = ("accelerated", "two-stage", "one-stage")
THICKNESSES = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32)
TOLERANCE = 0.02
"""Dice that accelerated mode may lose to two-stage mode."""


def largest_object(mask: NDArray[np.bool_]) -> Box:
    """The box of the largest object."""
    names = label_components(mask)
    found = np.argwhere(names == np.bincount(names.reshape(-1))[1:].argmax() + 1)
    return Box(triple(found.min(0)), triple(found.max(0) + 1))


def slabs(target: Box, whole: Box, axes: str, thicknesses: Sequence[int]) -> Iterator[tuple[str, Box]]:
    """Slabs around a box's centre: their names and boxes."""
    for axis in map(AXES.index, axes):
        for thickness in thicknesses:
            shape = triple(thickness if other == axis else edge for other, edge in enumerate(whole.shape))
            yield f"{AXES[axis]} {thickness}", target.centred(shape, whole)


def borders(target: Box, whole: Box, axes: str) -> Iterator[tuple[str, Box]]:
    """What is left if the volume is cut at each face of a box, and at its middle: names and boxes."""
    for axis in map(AXES.index, axes):
        middle = (target.start[axis] + target.stop[axis]) // 2
        for cut in (target.start[axis], middle):
            start = triple(cut if other == axis else edge for other, edge in enumerate(whole.start))
            yield f"{AXES[axis]} {cut}:", Box(start, whole.stop)
        for cut in (middle, target.stop[axis]):
            stop = triple(cut if other == axis else edge for other, edge in enumerate(whole.stop))
            yield f"{AXES[axis]} :{cut}", Box(whole.start, stop)


def cut_out(volume: Volume[NDArray[np.generic]], box: Box) -> Volume[NDArray[np.generic]]:
    """A part of a volume as a volume of its own."""
    channels = tuple(np.ascontiguousarray(channel[box.slices]) for channel in volume.channels)
    return Volume(channels, dataclasses.replace(volume.grid, shape=box.shape), volume.name)


def compare(options: argparse.Namespace, console: Console) -> bool:
    """Measure, print a table; returns whether accelerated mode is nowhere behind."""
    dataset = load_dataset(options.dataset)
    bench = Bench(dataset, choose_case(dataset, options.case), source=options.models, overrides=options.overrides)
    volume = read_volume(bench.files)
    true = bench.reference != 0
    decided = bench.decided(np.ones_like(bench.reference)) != 0
    target, whole = largest_object(true), Box.whole(true.shape)
    if options.width:
        shape = triple(min(options.width, edge) for edge in whole.shape)
        whole = target.centred(shape, whole)
    parts = borders(target, whole, options.axes) if options.border else None
    pipelines = {mode: bench.pipeline(f"mode={mode}") for mode in options.modes}
    table = Table(title=f"{dataset.name} {bench.case.name}: Dice", title_justify="left")
    for name in ("part", "object voxels", *options.modes, "boxes", "canvases"):
        table.add_column(name, justify="right")
    fine = True
    for name, box in parts or slabs(target, whole, options.axes, options.thickness):
        part, reference, scores, counts = cut_out(volume, box), true[box.slices], {}, ["", ""]
        for mode, pipeline in pipelines.items():
            result = pipeline(part)
            scores[mode] = dice((result.labels != 0) & decided[box.slices], reference)
            if mode == "accelerated":
                counts = [f"{result.report.boxes['selected']:.0f}", f"{result.report.canvases['count']:.0f}"]
        behind = scores.get("two-stage", 0.0) - scores.get("accelerated", 1.0) > TOLERANCE
        fine &= not behind
        row = [name, str(int(reference.sum())), *(f"{score:.3f}" for score in scores.values()), *counts]
        table.add_row(*row, style="red" if behind else None)
        if options.verbose:
            console.print(*row, highlight=False)
    console.print(table)
    return fine


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dataset", required=True, choices=dataset_names())
    parser.add_argument("--case", help="default: the test case")
    parser.add_argument("--models", default="ours", help="ours, shared, or a folder")
    parser.add_argument("--thickness", type=int, nargs="+", default=THICKNESSES, help="voxels of the file")
    parser.add_argument("--axes", default=AXES, help="default: zyx")
    parser.add_argument("--border", action="store_true", help="objects at the border of thick volumes")
    parser.add_argument("--width", type=int, help="keep so many voxels of the other axes; default: all")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES[:2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--verbose", action="store_true", help="print every row at once, too")
    options, console = parser.parse_args(arguments), Console(width=None if sys.stdout.isatty() else 150)
    keep_freed_memory()
    try:
        return 0 if compare(options, console) else 1
    except C2FError as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
