"""Volumes thinner than a patch, and objects at a volume's border: is packing as good there as two-stage mode?

    python benchmarks/slabs.py --dataset lung
    python benchmarks/slabs.py --dataset ms --thickness 1 8 --axes z --modes accelerated two-stage one-stage
    python benchmarks/slabs.py --dataset lung --border --split train --results slabs.json

Slabs of a case are cut out around its largest object, across each axis, and segmented in each mode. With ``--border``
the case is cut through that object instead, so that it lies at one side of what is left. The exit code is 1 if
accelerated mode stays more than ``TOLERANCE`` of Dice behind two-stage mode anywhere. Settings are chosen on training
cases. With ``--results`` every row is kept, and what a file holds already is not measured again; ``--page`` writes
all rows as a table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.common.bench import Bench
from benchmarks.common.machine import forget
from benchmarks.common.registry import choose_case, dataset_names, find_case_files, load_dataset
from canvas import Box, triple
from coarse2fine.errors import C2FError
from coarse2fine.evaluation.masks import dice
from coarse2fine.io import Volume, read_volume
from coarse2fine.pipeline import Pipeline
from coarse2fine.regions.components import label_components
from coarse2fine.system.memory import keep_freed_memory

Row = dict[str, Any]
AXES = "zyx"
MODES = ("accelerated", "two-stage", "one-stage")
BOTH = {"accelerated", "two-stage"}
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
        for thickness in (each for each in thicknesses if each < whole.shape[axis]):
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


def measure(
    part: Volume[NDArray[np.generic]],
    true: NDArray[np.bool_],
    decided: NDArray[np.bool_],
    pipelines: dict[str, Pipeline],
) -> Row:
    """Segment a part in each mode: Dice where somebody has decided, seconds, and what accelerated mode did."""
    row: Row = {"voxels": int(true.sum())}
    for mode, pipeline in pipelines.items():
        forget()
        begin = time.perf_counter()
        result = pipeline(part)
        row[f"{mode} s"] = round(time.perf_counter() - begin, 2)
        row[mode] = round(dice((result.labels != 0) & decided, true), 4)
        if mode == "accelerated":
            row |= {"boxes": result.report.boxes.selected, "canvases": result.report.canvases.count}
    return row


def is_behind(row: Row) -> bool:
    """Whether accelerated mode lost more than it may."""
    return bool(row.get("two-stage", 0.0) - row.get("accelerated", 1.0) > TOLERANCE)


def rows_of(bench: Bench, options: argparse.Namespace, done: Sequence[Row]) -> Iterator[Row]:
    """Measure the parts of a case that are not done."""
    volume, true = read_volume(bench.files), bench.reference != 0
    decided = bench.decided(np.ones_like(bench.reference)) != 0
    target, whole = largest_object(true), Box.whole(true.shape)
    if options.width:
        shape = triple(min(options.width, edge) for edge in whole.shape)
        whole = target.centred(shape, whole)
    parts = borders(target, whole, options.axes) if options.border else None
    pipelines = {mode: bench.pipeline(f"mode={mode}") for mode in options.modes}
    for name, box in parts or slabs(target, whole, options.axes, options.thickness):
        case, width = bench.case, options.width or "all"
        row = {"data": bench.dataset.name, "case": case.name, "split": case.split, "width": width, "part": name}
        if all(any(row[key] != other[key] for key in row) for other in done):
            yield row | measure(cut_out(volume, box), true[box.slices], decided[box.slices], pipelines)


def show(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    rows = [
        row | {"gain": round(row["accelerated"] - row["two-stage"], 4)} if row.keys() >= BOTH else row for row in rows
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += (" | ".join(str(row.get(name, "")) for name in names) for row in rows)
    return "".join(f"| {line} |\n" for line in lines)


def compare(options: argparse.Namespace, console: Console) -> bool:
    """Measure and print; returns whether accelerated mode is nowhere behind."""
    dataset = load_dataset(options.dataset)
    cases = [case for case in find_case_files(dataset) if case.split == options.split and case.image]
    if options.case:
        cases = [choose_case(dataset, options.case)]
    known: list[Row] = json.loads(options.results.read_text()) if options.results and options.results.exists() else []
    first = Bench(dataset, cases[0], source=options.models, overrides=options.overrides)
    rows = []
    for case in cases:
        for row in rows_of(first.on(case), options, known):
            console.print(*row.values(), style="red" if is_behind(row) else None, highlight=False)
            rows.append(row)
            if options.results:
                options.results.write_text(json.dumps(known + rows, indent=0))
    if options.page:
        options.page.write_text(show(known + rows))
    return not any(map(is_behind, rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dataset", required=True, choices=dataset_names())
    parser.add_argument("--case", help="default: all of the split")
    parser.add_argument("--split", choices=("test", "train"), default="test")
    parser.add_argument("--models", default="ours", help="ours, shared, or a folder")
    parser.add_argument("--thickness", type=int, nargs="+", default=THICKNESSES, help="voxels of the file")
    parser.add_argument("--axes", default=AXES, help="default: zyx")
    parser.add_argument("--border", action="store_true", help="objects at the border of thick volumes")
    parser.add_argument("--width", type=int, help="keep so many voxels of the other axes; default: all")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES[:2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--results", type=Path, help="JSON file that keeps rows; those in it are not measured again")
    parser.add_argument("--page", type=Path, help="write all rows as a Markdown table")
    options, console = parser.parse_args(arguments), Console(width=None if sys.stdout.isatty() else 150)
    keep_freed_memory()
    try:
        return 0 if compare(options, console) else 1
    except C2FError as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
