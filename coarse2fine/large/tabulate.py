"""A table of all objects of a store: each cell measures its parts of them, and what belongs together is added up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.io import Grid, atomic_write
from coarse2fine.large.execution.work import Key
from coarse2fine.large.job import Job, store_of
from coarse2fine.large.segment import name_of
from coarse2fine.measures import Intensity, Measure, columns_of, place_of, row_of, write_table
from coarse2fine.system.timing import Run

PHASE = "measure"

Parts = Mapping[str, NDArray[Any]]
"""Parts of objects: ``number``, ``label``, ``voxels``, sums of places ``sum`` (n, 3), ``low`` and ``high`` (n, 3) in
voxels of the result, and of each channel ``mean`` and ``squares`` (sum of squared differences from it), both (n, c)."""


@dataclass(frozen=True, slots=True)
class MeasureCell:
    """Measures of the parts of objects that lie in a cell."""

    job: Job

    def __call__(self, key: Key, run: Run) -> Mapping[str, Any]:
        """Writes them into a file; returns how many ``parts`` there are."""
        core = self.job.lattice.core(triple(key))
        numbers = store_of(self.job.written).read(core)
        mask = numbers != 0
        if not mask.any():
            return {"parts": 0}
        rows = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        inner = Box(triple(int(row[0]) for row in rows), triple(int(row[-1]) + 1 for row in rows))
        box, mask = inner.shift(core.start), mask[inner.slices]
        labels = store_of(self.job.labels).read(box)[mask]
        channels = self.job.source.open()[1][0].channels
        values = [channel[box.slices][mask].astype(np.float64) for channel in channels]
        parts = parts_of(numbers[inner.slices][mask], labels, np.argwhere(mask) + box.start, values)
        path = _file_of(self.job, triple(key))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temp, temp.open("wb") as stream:
            np.savez(stream, **parts)  # type: ignore[arg-type]  # no array is called as an option
        return {"parts": len(parts["number"])}


def parts_of(
    numbers: NDArray[Any], labels: NDArray[Any], places: NDArray[np.int64], values: Sequence[NDArray[np.float64]]
) -> dict[str, NDArray[Any]]:
    """Measures of objects.

    Args:
        numbers: The object of each voxel.
        labels: The voxels' labels, one for each object.
        places: Where they lie, shape (voxels, 3).
        values: Their intensities, one array for each channel.
    """
    order = np.argsort(numbers, kind="stable")
    names, starts, counts = np.unique(numbers[order], return_index=True, return_counts=True)
    ordered = places[order]
    means, squares = [], []
    for channel in values:
        mean = np.add.reduceat(channel[order], starts) / counts
        means.append(mean)
        squares.append(np.add.reduceat((channel[order] - np.repeat(mean, counts)) ** 2, starts))
    return {
        "number": names.astype(np.uint64),
        "label": labels[order][starts].astype(np.uint64),
        "voxels": counts.astype(np.int64),
        "sum": np.add.reduceat(ordered, starts, axis=0),
        "low": np.minimum.reduceat(ordered, starts, axis=0),
        "high": np.maximum.reduceat(ordered, starts, axis=0) + 1,
        "mean": np.stack(means, axis=1),
        "squares": np.stack(squares, axis=1),
    }


def join_parts(parts: Sequence[Parts]) -> dict[str, NDArray[Any]]:
    """Objects from their parts, in order of their numbers."""
    every = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(every["number"], kind="stable")
    every = {name: values[order] for name, values in every.items()}
    names, starts, count = np.unique(every["number"], return_index=True, return_counts=True)
    voxels = np.add.reduceat(every["voxels"], starts)
    mean = np.add.reduceat(every["mean"] * every["voxels"][:, None], starts, axis=0) / voxels[:, None]
    # Parts differ in their means, which adds to the spread of the whole.
    shift = (every["mean"] - np.repeat(mean, count, axis=0)) ** 2 * every["voxels"][:, None]
    return {
        "number": names,
        "label": every["label"][starts],
        "voxels": voxels,
        "sum": np.add.reduceat(every["sum"], starts, axis=0),
        "low": np.minimum.reduceat(every["low"], starts, axis=0),
        "high": np.maximum.reduceat(every["high"], starts, axis=0),
        "mean": mean,
        "squares": np.add.reduceat(every["squares"] + shift, starts, axis=0),
    }


def tabulate(
    job: Job,
    phase: Callable[[str, Any, Sequence[Any], Callable[[Triple], Box]], Mapping[Key, Mapping[str, Any]]],
    cells: Sequence[Triple],
    names: Mapping[str, frozenset[int]],
    path: Path,
) -> None:
    """Measure all objects, and write a row for each, the largest of each label first.

    Args:
        job: The run; its objects have their final numbers.
        phase: Runs a phase.
        cells: Cells that may have objects.
        names: Label values by name.
        path: The table.

    Raises:
        OutputError: If it cannot be written.
    """
    measured = phase(PHASE, MeasureCell(job), cells, job.lattice.core)
    files = [_file_of(job, triple(cell)) for cell, payload in measured.items() if payload["parts"]]
    channels = len(job.source.open()[1][0].channels)
    columns = columns_of(job.result.grid.unit, channels, objects=True)
    write_table(_rows([_load(file) for file in files], job.result.grid, names), columns, path)


def _rows(parts: Sequence[Parts], grid: Grid, names: Mapping[str, frozenset[int]]) -> Iterator[dict[str, Any]]:
    if not parts:
        return
    found = join_parts(parts)
    for index in np.lexsort((found["number"], -found["voxels"], found["label"])):
        voxels, label = int(found["voxels"][index]), int(found["label"][index])
        z, y, x = (found["sum"][index] / voxels).tolist()
        low, high = (triple(found[name][index].tolist()) for name in ("low", "high"))
        unknown = (math.nan,) * 3  # percentiles are not those of parts added up
        row = row_of(
            Measure(
                next((name for name, values in names.items() if values == {label}), ""),
                (label,),
                voxels,
                float(voxels * np.prod(grid.spacing)),
                grid.unit,
                number=int(found["number"][index]),
                place=place_of(grid, (z, y, x), Box(low, high)),
                intensity=tuple(
                    Intensity(float(mean), math.sqrt(squares / voxels), *unknown)
                    for mean, squares in zip(found["mean"][index], found["squares"][index], strict=True)
                ),
            )
        )
        yield {name: value for name, value in row.items() if not (isinstance(value, float) and math.isnan(value))}


def _file_of(job: Job, cell: Triple) -> Path:
    return job.work.path(f"measured/{name_of(cell)}.npz")


def _load(path: Path) -> Parts:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
